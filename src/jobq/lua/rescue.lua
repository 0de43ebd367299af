-- rescue.lua: take jobs whose lease has expired away from whoever held them, and queue them again.
-- KEYS[1]  leases            jobq:leases
-- KEYS[2]  pulse             jobq:pulse
-- KEYS[3]  cancel requests   jobq:cancels
-- KEYS[4]  quarantine        jobq:quarantine
-- KEYS[5]  set of queues     P:queues
-- KEYS[6]  children to come  jobq:after
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  lease ms   ARGV[5] most jobs   ARGV[6] ended_at, ISO   ARGV[7] seconds to keep a dead or cancelled job
-- ARGV[8]  record for the attempt history, whose "number":0 becomes the attempt's, or ''
-- ARGV[9]  what the results stream of a dead one says, or ''   ARGV[10+] queue, seconds to keep its own, ...
-- Returns  {held 0|1, id, queue, word, ...}; word: queued | dead (poison) | cancelled
-- Keys built inside: P:job:<id>, P:wip:<q>, P:queue:<q>, P:failed:<q>, P:canceled:<q>, P:results:<id>,
--          P:job:<id>:dependents, jobq:attempts:<id>, jobq:dedup:<name>, jobq:wait:<id>, jobq:done:<id>;
--          jobq:n:<q>:<minute>; of jobs with limits: jobq:held:<gate>, jobq:gates; of jobs with an order or a tenant: jobq:q:<q>,
--          jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- Idempotent: what was moved has no lease any more.
-- Full memory: the first write is a ZREM of nobody.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local third, keep = tonumber(ARGV[4]) / 3, tonumber(ARGV[7])
local now_s = math.floor(now / 1000)
local text = string.format('%.0f', now)
redis.call('ZREM', KEYS[1], '')
local pulse = redis.pcall('HMGET', KEYS[2], 't', 'hold', 'f')
if pulse.err then
  -- Of the wrong type: nobody would be rescued any more.
  redis.call('DEL', KEYS[2])
  pulse = {}
end
local last, hold, looked = tonumber(pulse[1] or ''), tonumber(pulse[2] or ''), tonumber(pulse[3] or '')
-- No pass for a third of a lease: Redis or everybody was away. Who is alive gets that long to say so.
if not last or math.abs(now - last) > third then
  if last and last > now then
    -- The clock was set back, and leases given before would stand for so much longer. Each keeps what it had left,
    -- and at least a whole lease of ours; whoever has claimed since ends before the first of them.
    local from = math.max(now + tonumber(ARGV[4]), last - tonumber(ARGV[4]))
    local old = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', from), '+inf', 'WITHSCORES')
    for i = 1, #old, 2 do
      local ends = math.max(tonumber(old[i + 1]) - (last - now), now + tonumber(ARGV[4]))
      redis.call('ZADD', KEYS[1], 'XX', string.format('%.0f', ends), old[i])
    end
    -- What was to be looked at by the old clock is looked at now.
    redis.pcall('ZUNIONSTORE', N .. 'gates', 1, N .. 'gates', 'WEIGHTS', 0)
  end
  redis.call('HSET', KEYS[2], 't', text, 'hold', string.format('%.0f', now + third))
  return { 1 }
end
redis.call('HSET', KEYS[2], 't', text)
-- A hold that is further away than it can be is of a clock that was set back since.
if hold and hold > now and hold - now <= third then return { 1 } end
local foreign = not looked or math.abs(now - looked) > 10000
if foreign then redis.call('HSET', KEYS[2], 'f', text) end

-- From here on a key of the wrong type is as good as empty, and nothing is written to it: it costs itself alone.
local raw, EMPTY = redis, { GET = false, HGET = false, LPOP = false, LPOS = false, LLEN = 0, ZCARD = 0, SCARD = 0,
  ZSCORE = false }
local redis = { pcall = raw.pcall, call = function(...)
  local reply = raw.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not tostring(reply.err):find('WRONGTYPE', 1, true) then return raw.call(...) end
  local empty = EMPTY[(...)]
  if empty == nil then return {} end
  return empty
end }

local out, orphans, back, order, keeps = { 0 }, {}, {}, {}, {}
for a = 10, #ARGV, 2 do keeps[ARGV[a]] = math.max(60, tonumber(ARGV[a + 1])) end

-- Counts how a run ended, as settle does: o it goes on, d dead, c cancelled.
local function note(queue, mark, description)
  local minute = N .. 'n:' .. queue .. ':' .. string.format('%.0f', math.floor(now_s / 60))
  local task = (description or ''):match('^%s*([^(]*)'):gsub('%s+$', '')
  redis.call('HSETNX', minute, 't', '1')
  if type(redis.pcall('HINCRBY', minute, mark .. ':' .. task, 1)) ~= 'table' then
    redis.call('EXPIRE', minute, 93600)
  end
end

-- Gives a queued job its place: among its tenant's jobs, else among those of no tenant, by the moment from which it
-- waits and its order. Those that are placed in one call keep their order. A key of the wrong type gives no place.
local placed = 0
local function place(queue, id, at, order, tenant)
  if not order and not tenant then return end
  local function whole(text) return tonumber((text or ''):match('^%d+$') or '') end
  local state, kind = N .. 'q:' .. queue, tenant and 'fair' or 'order'
  local row = redis.pcall('HMGET', state, kind, 'turn', 'step')
  if not row[1] then redis.pcall('HSET', state, kind, '1') end
  if not (at > 0 and at < 1e15) then at = 0 end
  placed = placed + 1
  at = at + placed / 1000 + ((whole(order) or 5) - 5) * (tonumber(row[3] or '') or 30000)
  local zset = N .. 'order:' .. queue
  if tenant then
    -- Turns are two apart: a tenant of whom nothing waited comes between, before anybody has a second one.
    redis.pcall('ZADD', N .. 'turns:' .. queue, 'NX', (whole(row[2]) or 0) + 1, tenant)
    redis.pcall('SADD', N .. 'fair:' .. queue, id)
    zset = N .. 'turn:' .. queue .. ':' .. tenant
  end
  redis.pcall('ZADD', zset, string.format('%.3f', at), id)
end

-- One interrupted job: its member, and the queue when the registry it came from tells.
local function move(member)
  local id = member:match('^([^:]*):')
  if not id then return end
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'origin', 'lost', 'attempts', 'dk', 'cx', 'lm', 'q', 'or', 'tn',
    'description', 'lo')
  if row.err then
    redis.call('ZADD', KEYS[4], now, id)
    orphans[#orphans + 1] = member
    return
  end
  local queue = row[2]
  if not row[1] or not queue then
    redis.call('SREM', KEYS[3], id)
    orphans[#orphans + 1] = member
    return
  end
  redis.call('ZREM', P .. 'wip:' .. queue, member)
  if row[6] or row[1] ~= 'started' then redis.call('SREM', KEYS[3], id) end
  for name in (row[12] or row[7] or ''):gmatch('c,%d+,%d+,%d+,([^;]+)') do
    if redis.call('ZREM', N .. 'held:' .. name, member) == 1 then
      redis.call('ZADD', N .. 'gates', 'XX', 'LT', now, name)
    end
  end
  if row[1] ~= 'started' then return end
  local lost = tonumber(row[3] or '') or 0
  lost = (lost >= 0 and lost < 1e15 and math.floor(lost) or 0) + 1
  local word = 'queued'
  if row[6] then word = 'cancelled' elseif lost >= 6 then word = 'dead' end
  local keep = keeps[queue] or keep
  if ARGV[8] ~= '' then
    local attempt = string.format('"number":%.0f', math.min(tonumber((row[4] or ''):match('^%d+$') or '0'), 1e9) + 1)
    redis.call('RPUSH', N .. 'attempts:' .. id, (ARGV[8]:gsub('"number":0', attempt, 1)))
    redis.call('LTRIM', N .. 'attempts:' .. id, -20, -1)
    redis.call('EXPIRE', N .. 'attempts:' .. id, 2592000)
  end
  note(queue, word == 'queued' and 'o' or word:sub(1, 1), row[11])
  if word == 'queued' then
    redis.call('HSET', key, 'status', 'queued', 'lost', lost)
    redis.call('HDEL', key, 'started_at', 'worker_name')
    if not back[queue] then
      back[queue] = {}
      order[#order + 1] = queue
    end
    table.insert(back[queue], 1, id)
    place(queue, id, tonumber(row[8] or '') or now, row[9], row[10])
  else
    if word == 'dead' then
      redis.call('HSET', key, 'status', 'failed', 'lost', lost, 'why', 'poison', 'ended_at', ARGV[6], 'st', 'rescue')
      redis.call('ZADD', P .. 'failed:' .. queue, now_s + keep, id)
      if ARGV[9] ~= '' then
        redis.call('XADD', P .. 'results:' .. id, 'MAXLEN', '10', '*', 'type', '2', 'worker_name', '', 'exc_string', ARGV[9])
      end
    else
      redis.call('HSET', key, 'status', 'canceled', 'lost', lost, 'ended_at', ARGV[6], 'st', 'rescue')
      redis.call('ZADD', P .. 'canceled:' .. queue, now_s, id)
    end
    redis.call('EXPIRE', key, keep)
    redis.call('EXPIRE', N .. 'attempts:' .. id, keep)
    redis.call('EXPIRE', P .. 'results:' .. id, keep)
    local dk = row[5]
    if dk and dk:sub(1, 2) ~= 'w:' then
      local name = N .. 'dedup:' .. dk:sub(3)
      if redis.call('GET', name) == dk:sub(1, 2) .. id then redis.call('DEL', name) end
    end
    if redis.call('EXISTS', N .. 'wait:' .. id) == 1 then
      redis.call('RPUSH', N .. 'done:' .. id, word)
      redis.call('EXPIRE', N .. 'done:' .. id, 60)
    end
    if redis.call('EXPIRE', P .. 'job:' .. id .. ':dependents', keep) == 1 then
      redis.call('ZADD', KEYS[6], now, id)
    end
  end
  local k = #out
  out[k + 1], out[k + 2], out[k + 3] = id, queue, word
end

local most = tonumber(ARGV[5])
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most)
if #members > 0 then
  redis.call('ZREM', KEYS[1], unpack(members))
  for _, member in ipairs(members) do move(member) end
end
if foreign then
  -- A dead stock worker leaves a finite score; its own registry would call the job failed, without a retry.
  for _, queue_key in ipairs(redis.call('SMEMBERS', KEYS[5])) do
    local wip = P .. 'wip:' .. queue_key:sub(#P + 7)
    local room = most - #members
    if room > 0 then
      local stale = redis.call('ZRANGEBYSCORE', wip, '-inf', now_s - 60, 'LIMIT', 0, room)
      for _, member in ipairs(stale) do
        redis.call('ZREM', wip, member)
        members[#members + 1] = member
        move(member)
      end
    end
  end
end
if #orphans > 0 then
  -- The hash that named the queue is gone or broken, so its entry may be in any registry.
  for _, queue_key in ipairs(redis.call('SMEMBERS', KEYS[5])) do
    redis.call('ZREM', P .. 'wip:' .. queue_key:sub(#P + 7), unpack(orphans))
  end
  -- So are the names of its gates; of those that nobody waits at, claim frees the place when they are full.
  for _, name in ipairs(redis.call('ZRANGE', N .. 'gates', 0, 999)) do
    if redis.call('ZREM', N .. 'held:' .. name, unpack(orphans)) > 0 then
      redis.call('ZADD', N .. 'gates', 'XX', 'LT', now, name)
    end
  end
end
-- Each list was filled last first, so the jobs stand in front in the order of their expiry.
for _, queue in ipairs(order) do redis.call('LPUSH', P .. 'queue:' .. queue, unpack(back[queue])) end
return out
