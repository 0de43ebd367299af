-- unpark.lua: queue the parked jobs of one bucket again.
-- KEYS[1]  parked ids       jobq:parked:<q>:<bucket>
-- KEYS[2]  parked buckets   jobq:parked:<q>
-- KEYS[3]  queue state      jobq:q:<q>
-- KEYS[4]  deferred zset    P:deferred:<q>
-- KEYS[5]  queue list       P:queue:<q>
-- KEYS[6]  quarantine       jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] bucket   ARGV[5] most jobs
-- Returns  count of jobs queued
-- Keys built inside: P:job:<id>.
-- Idempotent: what was moved is parked no more.   Full memory: the first write is ZREM.
local P = ARGV[2]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local ids, push = redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[5]) - 1), {}
if #ids > 0 then
  redis.call('ZREM', KEYS[1], unpack(ids))
  redis.call('ZREM', KEYS[4], unpack(ids))
end
for _, id in ipairs(ids) do
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'park', 'q')
  if row.err then
    redis.call('ZADD', KEYS[6], now, id)
  elseif row[1] == 'deferred' and row[2] then
    redis.call('HDEL', key, 'park', 'pb')
    if row[3] then
      redis.call('HSET', key, 'status', 'queued', 'q', string.format('%.0f', now))
    else
      redis.call('HSET', key, 'status', 'queued')
    end
    push[#push + 1] = id
  end
end
if #push > 0 then redis.call('RPUSH', KEYS[5], unpack(push)) end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SREM', KEYS[2], ARGV[4])
  if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('HDEL', KEYS[3], 'parked') end
end
return #push
