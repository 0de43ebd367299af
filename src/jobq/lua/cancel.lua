-- cancel.lua: end a waiting job, or ask a running one to stop.
-- KEYS[1]  job hash           P:job:<id>
-- KEYS[2]  cancel requests    jobq:cancels
-- KEYS[3]  children to come   jobq:after
-- KEYS[4]  quarantine         jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] job id   ARGV[5] ended_at, ISO
-- ARGV[6]  seconds to keep the cancelled job
-- ARGV[7]  rq's words of the states that are meant, each with a comma after it; '' = any
-- Returns  cancelled | requested | finished | gone | the state that was not meant
-- Keys built inside: of the job's queue: list, scheduled, deferred, canceled, jobq:retrying, jobq:parked, jobq:blocked,
--          jobq:q, jobq:order, jobq:fair, jobq:turn; of the job: results, dependents, jobq:attempts, jobq:dedup,
--          jobq:wait, jobq:done; of a job with limits: jobq:gate, jobq:gates.
-- Publishes the id on jobq:cancel when it runs.
-- Idempotent: a second cancel finds the first one's status, or its request.
-- Full memory: the first write is a ZREM of nobody.
local P, N, id, keep = ARGV[2], ARGV[3], ARGV[4], math.max(60, tonumber(ARGV[6]))
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
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
-- Takes a queued job out of its place.
local function displace(queue, id, order, tenant)
  if tenant then
    redis.pcall('SREM', N .. 'fair:' .. queue, id)
    redis.pcall('ZREM', N .. 'turn:' .. queue .. ':' .. tenant, id)
  elseif order then
    redis.pcall('ZREM', N .. 'order:' .. queue, id)
  end
end

-- Out of the list. LREM at the far end of a million entries takes 22 ms; what is left in a long one, claim drops.
local function unlist(queue, id, order, tenant)
  if redis.call('LLEN', P .. 'queue:' .. queue) <= 10000 then redis.call('LREM', P .. 'queue:' .. queue, 0, id) end
  displace(queue, id, order, tenant)
end

-- Who waits at a gate that this job was to pass next may be let in at once. One that a gate has stopped once has perhaps to
-- pass some that its hash does not name: those that operators have set for its task.
local function give_way(lm, bucket, let_in, description)
  local stopped = let_in or (bucket and bucket:find('^~gate:'))
  local row, task = { 'XX', 'LT' }, stopped and (description or ''):match('^%s*([^%s(]*)') or ''
  local function add(name) row[#row + 1], row[#row + 2] = 0, name end
  local function set_for(whose)
    add('r:' .. whose)
    add('c:' .. whose)
  end
  if task ~= '' then set_for(task) end
  for name in (lm or ''):gmatch('%a,%d+,%d+,%d+,([^;,]+)') do
    add(name)
    if task ~= '' and name:sub(3, #task + 3) == task .. ':' then set_for(name:sub(3)) end
  end
  if row[3] then redis.call('ZADD', N .. 'gates', unpack(row)) end
end

-- Out of every place where a waiting job can stand.
local function leave(queue, id, status, bucket, order, tenant)
  if status == 'queued' then
    unlist(queue, id, order, tenant)
  elseif status == 'scheduled' then
    redis.call('ZREM', P .. 'scheduled:' .. queue, id)
    redis.call('ZREM', N .. 'retrying:' .. queue, id)
  else
    redis.call('ZREM', P .. 'deferred:' .. queue, id)
    local gate = bucket and bucket:match('^~gate:(.*)$')
    if gate then
      redis.call('ZREM', N .. 'gate:' .. gate, id)
      redis.call('ZREM', N .. 'blocked:' .. queue, id)
    elseif bucket then
      local zset = N .. 'parked:' .. queue .. ':' .. bucket
      redis.call('ZREM', zset, id)
      if redis.call('EXISTS', zset) == 0 then
        redis.call('SREM', N .. 'parked:' .. queue, bucket)
        if redis.call('EXISTS', N .. 'parked:' .. queue) == 0 then redis.call('HDEL', N .. 'q:' .. queue, 'parked') end
      end
    end
  end
end

-- Frees the dedup key, unless another job holds it, or a window runs.
local function free(id, dk)
  if dk and dk:sub(1, 2) ~= 'w:' then
    local name = N .. 'dedup:' .. dk:sub(3)
    if redis.call('GET', name) == dk:sub(1, 2) .. id then redis.call('DEL', name) end
  end
end

-- Answers whoever waits for the job.
local function tell(id)
  if redis.call('EXISTS', N .. 'wait:' .. id) == 1 then
    redis.call('RPUSH', N .. 'done:' .. id, 'cancelled')
    redis.call('EXPIRE', N .. 'done:' .. id, 60)
  end
end

local row = redis.pcall('HMGET', KEYS[1], 'status', 'origin', 'dk', 'pb', 'attempts', 'or', 'tn', 'lm', 'li',
  'description')
if row.err then
  redis.call('ZREM', KEYS[4], '')
  redis.call('ZADD', KEYS[4], now, id)
  return 'gone'
end
local status, queue = row[1], row[2]
if not status or not queue then return 'gone' end
if status == 'canceled' then return 'cancelled' end
if status == 'finished' or status == 'failed' or status == 'stopped' then return 'finished' end
if ARGV[7] ~= '' and not (',' .. ARGV[7]):find(',' .. status .. ',', 1, true) then
  return status == 'started' and 'running' or status
end
redis.call('ZREM', KEYS[3], '')
if status == 'started' then
  redis.call('HSET', KEYS[1], 'cx', '1')
  redis.call('SADD', KEYS[2], id)
  redis.call('PUBLISH', N .. 'cancel', id)
  return 'requested'
end
give_way(row[8], row[4], row[9], row[10])
leave(queue, id, status, row[4], row[6], row[7])
-- st tells a later claim, after an rq tool's requeue, that there is an expiry to take away.
redis.call('HSET', KEYS[1], 'status', 'canceled', 'cx', '1', 'ended_at', ARGV[5], 'st', 'cancel')
redis.call('HDEL', KEYS[1], 'park', 'pb')
redis.call('ZADD', P .. 'canceled:' .. queue, math.floor(now / 1000), id)
redis.call('EXPIRE', KEYS[1], keep)
if row[5] then
  redis.call('EXPIRE', N .. 'attempts:' .. id, keep)
  redis.call('EXPIRE', P .. 'results:' .. id, keep)
end
free(id, row[3])
tell(id)
redis.call('EXPIRE', P .. 'job::' .. id .. ':dependencies', keep)
if redis.call('EXPIRE', P .. 'job:' .. id .. ':dependents', keep) == 1 then redis.call('ZADD', KEYS[3], now, id) end
return 'cancelled'
