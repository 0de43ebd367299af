-- audit_jobs.lua: say what is wrong with jobs, and set it right when asked: each belongs in the place of its status.
-- KEYS[1]  leases       jobq:leases
-- KEYS[2]  quarantine   jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  1 = set it right   ARGV[5] lease ms   ARGV[6] seconds to keep an ended job that has no expiry
-- then per job: id, what the caller saw of it ('' nothing | list: it is queued and in no list | the start of a run
--          that it found no lease of), its member of the started registry ('' = none)
-- Returns  {status, start of the run, kinds, ...} three per job; of one that is queued its queue instead of the start;
--          kinds: 'kind:detail,...', '' = nothing is wrong
-- Keys built inside: P:job:<id>; of its queue: list, registries, jobq:retrying, jobq:parked, jobq:blocked, jobq:q;
--          jobq:gate:<gate>, jobq:gates.
-- Idempotent: what is right stays as it is. A run without a lease gets one that rescue takes when it ends, so
-- whoever still has the job may go on, and nothing is queued that somebody settles.
-- Full memory: the first write is a ZREM of nobody.
local P, N, fix = ARGV[2], ARGV[3], ARGV[4] == '1'
local lease, keep = tonumber(ARGV[5]), tonumber(ARGV[6])
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local now_s = math.floor(now / 1000)
local ms = string.format('%.0f', now)
-- Seconds that a stock worker's entry may be past its time: rescue takes it at 60.
local STOCK_S = 90
-- More than this of a list is not searched: 20 ms.
local FAR = 1000000
local REGISTRY = { scheduled = 'scheduled', deferred = 'deferred', finished = 'finished', failed = 'failed',
  stopped = 'failed', canceled = 'canceled' }
local ENDED = { finished = true, failed = true, stopped = true, canceled = true }
local NOWHERE = { created = true, ready_to_enqueue = true, rate_limited = true }
if fix then redis.call('ZREM', KEYS[1], '') end
local quarantined = redis.call('TYPE', KEYS[2]).ok == 'zset'

-- A container of the wrong type is a finding of its own: here it counts as holding whatever is asked for.
local function ask(...)
  local answer = redis.pcall(...)
  return type(answer) == 'table' and '1' or answer
end

-- Why a hash cannot be read; '' when there is none, nil when it can.
local function unreadable(key, row)
  if row.err then return 'not a hash' end
  if row[1] and not REGISTRY[row[1]] and not NOWHERE[row[1]] and row[1] ~= 'queued' and row[1] ~= 'started' then
    return 'status is no word of rq'
  end
  local data = redis.call('HEXISTS', key, 'data') == 1
  if not row[1] and not data then
    -- A withdrawn id that never came is a stone without status, which goes by itself.
    return (row[9] == 'withdraw' or redis.call('EXISTS', key) == 0) and '' or 'no status'
  end
  return not row[1] and 'no status' or not data and 'no data' or not row[2] and 'no origin' or nil
end

-- Whether nobody holds a run: neither a lease of ours nor a stock worker.
local function abandoned(queue, member)
  if ask('ZSCORE', KEYS[1], member) then return nil end
  local score = tonumber(ask('ZSCORE', P .. 'wip:' .. queue, member) or 'inf')
  if score == math.huge then return 'no_lease' end
  return score < now_s - STOCK_S and 'stock_run' or nil
end

local out = {}
for a = 7, #ARGV, 3 do
  local id, seen, member = ARGV[a], ARGV[a + 1], ARGV[a + 2]
  local key, found = P .. 'job:' .. id, {}
  local row = redis.pcall('HMGET', key, 'status', 'origin', 'attempts', 'q', 'started_at', 'park', 'pb', 'ttl', 'st')
  local why = unreadable(key, row)
  local status, queue, run = row[1] or '', row[2], row[5] or '?'
  if why then
    status, run = row.err and '' or status, ''
    if why ~= '' then found[1] = 'unreadable:' .. why end
  else
    local ttl = redis.call('TTL', key)
    local zset = REGISTRY[status] and P .. REGISTRY[status] .. ':' .. queue
    local score = zset and ask('ZSCORE', zset, id)
    if ENDED[status] then
      if not score and (ttl < 0 or ttl > 5) then
        found[#found + 1] = 'not_in_registry'
        if fix then
          local till = status == 'canceled' and now_s or now_s + (ttl < 0 and keep or ttl)
          redis.call('ZADD', zset, till, id)
        end
      end
      -- Plain rq keeps a result for ever by an endless score; its cancel writes one, too, and forgets the expiry.
      if ttl < 0 and (status == 'canceled' or not score or tonumber(score) ~= math.huge) then
        found[#found + 1] = 'no_expiry'
        if fix then
          redis.call('EXPIRE', key, keep)
          redis.pcall('ZADD', zset, status == 'canceled' and now_s or now_s + keep, id)
        end
      end
    else
      if ttl >= 0 and not row[8] then
        found[#found + 1] = 'expiring'
        if fix then redis.call('PERSIST', key) end
      end
      if zset and not score then
        found[#found + 1] = 'not_in_registry'
        if fix then
          local due = (tonumber(row[4] or '') or now) / 1000
          redis.call('ZADD', zset, status == 'deferred' and now_s or string.format('%.3f', due), id)
        end
      end
      if status == 'scheduled' then
        local spent = (tonumber(row[3] or '') or 0) > 0
        local counted = ask('ZSCORE', N .. 'retrying:' .. queue, id)
        if spent ~= (counted and true or false) then
          found[#found + 1] = 'retry_count'
          if fix and spent then redis.pcall('ZADD', N .. 'retrying:' .. queue, tonumber(row[4] or '') or ms, id) end
          if fix and not spent then redis.pcall('ZREM', N .. 'retrying:' .. queue, id) end
        end
      elseif status == 'deferred' and row[6] then
        local bucket = row[7] or ''
        local gate = bucket:match('^~gate:(.*)$')
        local names, ids = N .. 'parked:' .. queue, N .. 'parked:' .. queue .. ':' .. bucket
        if gate then
          local waiting, blocked = N .. 'gate:' .. gate, N .. 'blocked:' .. queue
          if not ask('ZSCORE', waiting, id) or not ask('ZSCORE', N .. 'gates', gate) or not ask('ZSCORE', blocked, id) then
            found[#found + 1] = 'not_in_bucket'
            if fix then
              redis.call('ZADD', waiting, 'NX', tonumber(row[4] or '') or ms, id)
              redis.call('ZADD', N .. 'gates', 'NX', ms, gate)
              redis.call('ZADD', blocked, 'NX', ms, id)
            end
          end
        elseif not ask('ZSCORE', ids, id) or ask('SISMEMBER', names, bucket) == 0
          or ask('HGET', N .. 'q:' .. queue, 'parked') ~= '1' then
          found[#found + 1] = 'not_in_bucket'
          if fix then
            redis.call('ZADD', ids, 'NX', ms, id)
            redis.call('SADD', names, bucket)
            redis.call('HSET', N .. 'q:' .. queue, 'parked', '1')
          end
        end
      elseif status == 'queued' and seen == 'list' then
        if not ask('LPOS', P .. 'queue:' .. queue, id, 'MAXLEN', FAR) then
          found[#found + 1] = 'not_in_list'
          -- In front, where it was when it was lost; a second copy further back would be dropped by claim.
          if fix then redis.call('LPUSH', P .. 'queue:' .. queue, id) end
        end
      elseif status == 'started' and seen == run then
        local name = member ~= '' and member or id .. ':doctor'
        local kind = abandoned(queue, name)
        if kind then
          found[#found + 1] = kind
          if fix then
            redis.call('ZADD', KEYS[1], string.format('%.0f', kind == 'no_lease' and now + lease or now), name)
            redis.call('ZADD', P .. 'wip:' .. queue, '+inf', name)
          end
        end
      end
    end
  end
  if quarantined and (not why or why == '') and redis.call('ZSCORE', KEYS[2], id) then
    found[#found + 1] = 'stale_quarantine'
    if fix then redis.call('ZREM', KEYS[2], id) end
  end
  local k = #out
  out[k + 1], out[k + 2], out[k + 3] = status, status == 'queued' and not why and queue or run, table.concat(found, ',')
end
return out
