-- unregister.lua: take a worker out of rq's lists and ours.
-- KEYS[1]  worker as rq reads it   P:worker:<name>
-- KEYS[2]  worker as we read it    jobq:worker:<name>
-- KEYS[3]  set of workers          P:workers
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4+] queue names
-- Returns  1.   Keys built inside: P:workers:<q>.   Idempotent by nature.   Full memory: it only frees.
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], KEYS[1])
for i = 4, #ARGV do redis.call('SREM', ARGV[2] .. 'workers:' .. ARGV[i], KEYS[1]) end
return 1
