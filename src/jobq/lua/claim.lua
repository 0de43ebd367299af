-- claim.lua: take up to n waiting jobs of one queue under a lease, and return their payloads.
-- KEYS[1]  queue list        P:queue:<q>
-- KEYS[2]  started registry  P:wip:<q>
-- KEYS[3]  leases            jobq:leases
-- KEYS[4]  last claim        jobq:claim:<exec>
-- KEYS[5]  queue state       jobq:q:<q>
-- KEYS[6]  rq suspend flag   P:suspended
-- KEYS[7]  parked buckets    jobq:parked:<q>
-- KEYS[8]  quarantine        jobq:quarantine
-- KEYS[9]  deferred zset     P:deferred:<q>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  exec   ARGV[5] claim number   ARGV[6] n   ARGV[7] lease ms   ARGV[8] worker name   ARGV[9] started_at, ISO
-- ARGV[10] queue name   ARGV[11+] names of parked buckets that the caller can run
-- Returns  {word, now, until, parked 0|1, more 0|1, job, ...}; word: ok | stale | paused | suspended
--          job: {id, data, q, attempts, crashes, lost, o, timeout, description, jk, rq fields or nil}
-- Keys built inside: P:job:<id>, jobq:dedup:<name>, jobq:parked:<q>:<bucket>.
-- Idempotent: the same number yields the same jobs again, as far as their leases stand; a lower one yields none.
-- Full memory: the first write is LPOP, which frees; after it Redis lets the rest of a script pass.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local number, want, token = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[4] .. '.' .. ARGV[5]
local flags = redis.call('MGET', KEYS[6], KEYS[4])
local lease_end = now + tonumber(ARGV[7])
local out = { 'ok', now, lease_end, 0, 0 }

local RQ = { 'retries_left', 'result_ttl', 'failure_ttl', 'ttl', 'success_callback_name', 'failure_callback_name',
  'stopped_callback_name', 'webhooks', 'repeats_left', 'rate_limit_key', 'enqueued_at' }

-- Reads a job: the row to return with the id in the place of the status, and status, st, ttl, dk, park, bucket.
local function read(id)
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'data', 'q', 'attempts', 'crashes', 'lost', 'o',
    'timeout', 'description', 'jk', 'st', 'ttl', 'dk', 'park', 'pb')
  if row.err then return nil, 'broken' end
  local status, settled, ttl, dk, park, bucket = row[1], row[11], row[12], row[13], row[14], row[15]
  if not status and not row[2] then return nil, 'gone' end
  -- An id goes into members and records whose parts are told apart by colons, and through the worker as text.
  if not status or not row[2] or #id > 180 or id:find('[^ -9;-~]') then return nil, 'broken' end
  row[1] = id
  for i = 15, 11, -1 do row[i] = nil end
  -- Only jobs that plain rq made lack q.
  if not row[3] then row[11] = redis.call('HMGET', P .. 'job:' .. id, unpack(RQ)) end
  return row, status, settled, ttl, dk, park, bucket
end

if flags[2] then
  local last, ends, ids = flags[2]:match('^(%d+):(%d+):(.*)$')
  last = tonumber(last)
  if last and last > number then
    return { 'stale', now, 0, 0, 0 }
  end
  if last == number then
    out[3] = tonumber(ends)
    for id in ids:gmatch('[^:]+') do
      if redis.call('ZSCORE', KEYS[3], id .. ':' .. token) then
        local row, status = read(id)
        if row and status == 'started' then out[#out + 1] = row end
      end
    end
    return out
  end
end
if flags[1] then
  return { 'suspended', now, 0, 0, 0 }
end
local state = redis.call('HMGET', KEYS[5], 'paused', 'until', 'parked')
if state[1] == '1' then
  local ends = tonumber(state[2] or '0')
  if ends == 0 or ends > now then
    return { 'paused', now, ends, 0, 0 }
  end
end

if want < 1 then return out end

local taken, leases, wip = {}, {}, {}
local function take(id, row, settled, ttl, dk)
  local key = P .. 'job:' .. id
  if settled or ttl then
    -- Settled before, so it may be a dead letter that an rq tool requeued: it still has the old expiry and verdict.
    redis.call('PERSIST', key)
    if settled then redis.call('HDEL', key, 'cx', 'why', 'ended_at') end
  end
  redis.call('HSET', key, 'status', 'started', 'started_at', ARGV[9], 'worker_name', ARGV[8])
  if dk and dk:sub(1, 2) == 's:' then
    local name = N .. 'dedup:' .. dk:sub(3)
    if redis.call('GET', name) == 's:' .. id then redis.call('DEL', name) end
  end
  local member, k = id .. ':' .. token, #leases
  leases[k + 1], leases[k + 2] = lease_end, member
  wip[k + 1], wip[k + 2] = '+inf', member
  taken[#taken + 1] = id
  out[#out + 1] = row
end

if state[3] then
  out[4] = 1
  if #ARGV > 10 then
    local known = {}
    for i = 11, math.min(#ARGV, 900) do known[i - 10] = ARGV[i] end
    local hit = redis.call('SMISMEMBER', KEYS[7], unpack(known))
    for i, bucket in ipairs(known) do
      if hit[i] == 1 and #taken < want then
        local zset = N .. 'parked:' .. ARGV[10] .. ':' .. bucket
        local ids = redis.call('ZRANGE', zset, 0, want - #taken - 1)
        if #ids > 0 then
          redis.call('ZREM', zset, unpack(ids))
          redis.call('ZREM', KEYS[9], unpack(ids))
        end
        for _, id in ipairs(ids) do
          local row, status, settled, ttl, dk, park = read(id)
          if row and status == 'deferred' and park then
            redis.call('HDEL', P .. 'job:' .. id, 'park', 'pb')
            take(id, row, settled, ttl, dk)
          elseif status == 'broken' then
            redis.call('ZADD', KEYS[8], now, id)
          end
        end
        if redis.call('EXISTS', zset) == 0 then
          redis.call('SREM', KEYS[7], bucket)
          if redis.call('EXISTS', KEYS[7]) == 0 then redis.call('HDEL', KEYS[5], 'parked') end
        end
      end
    end
  end
end

for _ = 1, 10 do
  local room = want - #taken
  if room < 1 then break end
  local ids = redis.call('LPOP', KEYS[1], room) or {}
  for _, id in ipairs(ids) do
    local row, status, settled, ttl, dk = read(id)
    if row and status == 'queued' then
      take(id, row, settled, ttl, dk)
    elseif status == 'broken' then
      redis.call('ZADD', KEYS[8], now, id)
    end
  end
  out[5] = #ids == room and 1 or 0
  if #taken > 0 or #ids < room then break end
end
if #taken > 0 then
  redis.call('ZADD', KEYS[3], unpack(leases))
  redis.call('ZADD', KEYS[2], unpack(wip))
end
-- An empty claim is recorded too: the command of a client that timed out may run later, and must find itself stale.
redis.call('SET', KEYS[4], ARGV[5] .. ':' .. string.format('%.0f', lease_end) .. ':' .. table.concat(taken, ':'),
  'PX', 600000)
return out
