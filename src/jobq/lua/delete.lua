-- delete.lua: remove a job that does not run, with all that belongs to it.
-- KEYS[1]  job hash           P:job:<id>
-- KEYS[2]  quarantine         jobq:quarantine
-- KEYS[3]  children to come   jobq:after
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] job id
-- Returns  deleted | running | gone
-- Keys built inside: of the job's queue: list, registries, jobq:retrying, jobq:parked, jobq:q; of the job: results,
--          dependents, dependencies, jobq:attempts, jobq:dedup, jobq:wait, jobq:done; jobq:cancels.
-- Idempotent by nature: a second call answers gone.
-- Full memory: the first write is a ZREM.
local P, N, id = ARGV[2], ARGV[3], ARGV[4]
-- Out of every place where a waiting job can stand.
local function leave(queue, status, bucket)
  if status == 'queued' then
    -- LREM at the far end of a million entries takes 22 ms; what is left in a long list, claim drops.
    if redis.call('LLEN', P .. 'queue:' .. queue) <= 10000 then redis.call('LREM', P .. 'queue:' .. queue, 0, id) end
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
local function free(dk)
  if dk and dk:sub(1, 2) ~= 'w:' then
    local name = N .. 'dedup:' .. dk:sub(3)
    if redis.call('GET', name) == dk:sub(1, 2) .. id then redis.call('DEL', name) end
  end
end
local function tell()
  if redis.call('EXISTS', N .. 'wait:' .. id) == 1 then
    redis.call('RPUSH', N .. 'done:' .. id, 'cancelled')
    redis.call('EXPIRE', N .. 'done:' .. id, 60)
  end
end
local row = redis.pcall('HMGET', KEYS[1], 'status', 'origin', 'dk', 'pb')
if row.err then
  redis.call('ZREM', KEYS[2], id)
  redis.call('UNLINK', KEYS[1])
  return 'deleted'
end
local status, queue = row[1], row[2] or ''
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if status == 'started' then return 'running' end
redis.call('ZREM', KEYS[2], id)
redis.call('ZREM', KEYS[3], id)
redis.call('SREM', N .. 'cancels', id)
if status == 'finished' then
  redis.call('ZREM', P .. 'finished:' .. queue, id)
elseif status == 'failed' or status == 'stopped' then
  redis.call('ZREM', P .. 'failed:' .. queue, id)
elseif status == 'canceled' then
  redis.call('ZREM', P .. 'canceled:' .. queue, id)
elseif status then
  leave(queue, status, row[4])
  tell()
end
free(row[3])
redis.call('UNLINK', KEYS[1], P .. 'results:' .. id, N .. 'attempts:' .. id, P .. 'job:' .. id .. ':dependents',
  P .. 'job::' .. id .. ':dependencies')
return 'deleted'
