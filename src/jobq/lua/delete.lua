-- delete.lua: remove jobs that do not run, with all that belongs to them.
-- KEYS[1]  quarantine         jobq:quarantine
-- KEYS[2]  children to come   jobq:after
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  rq's words of the states to remove, each with a comma after it; '' = any but started
-- ARGV[5+] job ids; '<id>:<ended_at>' = only if it has not ended again since
-- Returns  {word, ...} in order: deleted | gone | changed | the state that forbids it
-- Keys built inside: P:job:<id>; of the job's queue: list, registries, jobq:retrying, jobq:parked, jobq:gate, jobq:gates,
--          jobq:blocked, jobq:q, jobq:order, jobq:fair, jobq:turn; of the job: results, dependents, dependencies,
--          jobq:attempts, jobq:dedup, jobq:log, jobq:wait, jobq:done; jobq:cancels; jobq:tag:<tag>,
--          jobq:corr:<correlation id>.
-- Idempotent by nature: a second call answers gone.
-- Full memory: the first write is a ZREM.
local P, N, only = ARGV[2], ARGV[3], ARGV[4]
local STATES = { queued = 'queued', started = 'running', finished = 'succeeded', failed = 'dead', stopped = 'dead',
  canceled = 'cancelled' }
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

-- Out of the list, at whose head a drain finds it. LREM at the far end of a million entries takes 22 ms; what is left
-- in a long one, claim drops.
local function unlist(queue, id, order, tenant)
  local list = P .. 'queue:' .. queue
  displace(queue, id, order, tenant)
  if redis.call('LPOS', list, id, 'MAXLEN', 1000) then
    redis.call('LREM', list, 1, id)
  elseif redis.call('LLEN', list) <= 10000 then
    redis.call('LREM', list, 0, id)
  end
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

-- The entries by which it was found. Most jobs carry neither tags nor a correlation id, and pay nothing.
local function forget(id, jk)
  local read, extra = pcall(cjson.decode, jk)
  if not read or type(extra) ~= 'table' then return end
  if type(extra.correlation_id) == 'string' then redis.call('ZREM', N .. 'corr:' .. extra.correlation_id, id) end
  for _, tag in ipairs(type(extra.tags) == 'table' and extra.tags or {}) do
    redis.call('ZREM', N .. 'tag:' .. tostring(tag), id)
  end
end
local REGISTRY = { finished = 'finished:', failed = 'failed:', stopped = 'failed:', canceled = 'canceled:' }

local function delete(item)
  local id, stamp = item:match('^([^:]*):?(.*)$')
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'origin', 'dk', 'pb', 'park', 'attempts', 'ended_at', 'jk', 'or',
    'tn', 'lm', 'li', 'description')
  if row.err then
    redis.call('ZREM', KEYS[1], id)
    redis.call('UNLINK', key)
    return 'deleted'
  end
  local status, queue = row[1], row[2] or ''
  if not status and redis.call('EXISTS', key) == 0 then return 'gone' end
  if status == 'started' then return 'running' end
  if only ~= '' and not only:find((status or '') .. ',', 1, true) then
    if status == 'scheduled' then return (tonumber(row[6] or '0') or 0) > 0 and 'retrying' or 'scheduled' end
    return STATES[status] or (row[5] and 'parked' or 'deferred')
  end
  if stamp ~= '' and row[7] ~= stamp then return 'changed' end
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('SREM', N .. 'cancels', id)
  if REGISTRY[status] then
    redis.call('ZREM', P .. REGISTRY[status] .. queue, id)
  elseif status then
    give_way(row[11], row[4], row[12], row[13])
    leave(queue, id, status, row[4], row[9], row[10])
    tell(id)
  end
  free(id, row[3])
  if row[8] then forget(id, row[8]) end
  redis.call('UNLINK', key, P .. 'results:' .. id, N .. 'attempts:' .. id, N .. 'log:' .. id,
    P .. 'job:' .. id .. ':dependents', P .. 'job::' .. id .. ':dependencies')
  return 'deleted'
end

local words = {}
for a = 5, #ARGV do words[a - 4] = delete(ARGV[a]) end
return words
