-- register.lua: show a worker as alive, in rq's lists and in ours.
-- KEYS[1]  worker as rq reads it   P:worker:<name>
-- KEYS[2]  worker as we read it    jobq:worker:<name>
-- KEYS[3]  set of workers          P:workers
-- KEYS[4]  set of queues           P:queues
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] seconds to live   ARGV[5] number of queues, n
-- ARGV[6..5+n] queue names   ARGV[6+n] number of rq's fields and values, m
-- then m fields and values of rq's hash, and after them those of ours
-- Returns  1.   Keys built inside: P:workers:<q>, P:scheduler-lock:<q>.   Idempotent by nature.
-- The lock keeps rq's own scheduler off queues whose due jobs we promote.
-- Full memory: the first write is a SREM of nobody.
local P, ttl, n = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('SREM', KEYS[3], '')
local first = 7 + n
local last = first + tonumber(ARGV[6 + n]) - 1
redis.call('HSET', KEYS[1], unpack(ARGV, first, last))
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('HSET', KEYS[2], unpack(ARGV, last + 1))
redis.call('EXPIRE', KEYS[2], ttl)
redis.call('SADD', KEYS[3], KEYS[1])
for i = 6, 5 + n do
  redis.call('SADD', P .. 'workers:' .. ARGV[i], KEYS[1])
  redis.call('SADD', KEYS[4], P .. 'queue:' .. ARGV[i])
  redis.call('SET', P .. 'scheduler-lock:' .. ARGV[i], 'jobq', 'EX', 60)
end
return 1
