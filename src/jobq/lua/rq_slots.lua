-- rq_slots.lua: free the slots of rq's own rate limits whose job is over, and queue who waits for them, by rq's rule.
-- KEYS[1]  rate limits   P:rl-keys
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] enqueued_at, ISO   ARGV[5] most jobs
-- Returns  jobs queued
-- Keys built inside: P:rl:<key>, P:rl:<key>:allowed, P:rl:<key>:rate_limited, P:job:<id>, P:queue:<q>.
-- Idempotent by nature.   Full memory: the first write is a SREM of nobody.
local P, most, queued = ARGV[2], tonumber(ARGV[5]), 0
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local HOLDS = { queued = true, started = true }
redis.call('SREM', KEYS[1], '')
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local limit = P .. 'rl:' .. name
  local allowed, waiting = limit .. ':allowed', limit .. ':rate_limited'
  for _, id in ipairs(redis.call('ZRANGE', allowed, 0, 999)) do
    local status = redis.pcall('HGET', P .. 'job:' .. id, 'status')
    if not HOLDS[status] then redis.call('ZREM', allowed, id) end
  end
  local free = (tonumber(redis.call('HGET', limit, 'concurrency') or '') or 0) - redis.call('ZCARD', allowed)
  while free > 0 and queued < most do
    local id = redis.call('ZPOPMIN', waiting)[1]
    if not id then break end
    local key = P .. 'job:' .. id
    local row = redis.pcall('HMGET', key, 'status', 'origin', 'enqueue_at_front')
    if not row.err and row[1] == 'rate_limited' and row[2] then
      redis.call('ZADD', allowed, now / 1000, id)
      redis.call('HSET', key, 'status', 'queued', 'enqueued_at', ARGV[4])
      redis.call(row[3] == '1' and 'LPUSH' or 'RPUSH', P .. 'queue:' .. row[2], id)
      free, queued = free - 1, queued + 1
    end
  end
  if redis.call('EXISTS', allowed, waiting) == 0 then
    redis.call('DEL', limit)
    redis.call('SREM', KEYS[1], name)
  end
end
return queued
