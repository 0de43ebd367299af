-- lift.lua: open the gates that RateLimited closed, as far as jobs of one queue wait at them.
-- KEYS[1]  blocked zset   jobq:blocked:<q>
-- KEYS[2]  gates          jobq:gates
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] first job to look at, from 0   ARGV[5] most jobs
-- Returns  jobs looked at
-- Keys built inside: P:job:<id>, jobq:closed:<gate>.
-- Idempotent by nature: it lets nobody in, it makes open.lua look.
-- Full memory: the first write is a DEL.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local ids = redis.call('ZRANGE', KEYS[1], ARGV[4], ARGV[4] + ARGV[5] - 1)
for _, id in ipairs(ids) do
  local bucket = redis.pcall('HGET', P .. 'job:' .. id, 'pb')
  local gate = type(bucket) == 'string' and bucket:match('^~gate:(.+)$')
  if gate and redis.call('DEL', N .. 'closed:' .. gate) == 1 then redis.call('ZADD', KEYS[2], 'LT', now, gate) end
end
return #ids
