-- schedule_resume.lua: end the pause of a schedule; the slots of the pause are not caught up.
-- KEYS[1]  schedule        jobq:schedule:<name>
-- KEYS[2]  due schedules   jobq:due
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] name   ARGV[5] rev
-- ARGV[6]  next slot, '' = none   ARGV[7] ms at which it is looked at
-- Returns  resumed | running | gone | changed (meanwhile)
-- Full memory: the first write is HDEL, which frees.
local row = redis.pcall('HMGET', KEYS[1], 'rev', 'paused')
if row.err or not row[1] then return 'gone' end
if not row[2] then return 'running' end
if row[1] ~= ARGV[5] then return 'changed' end
redis.call('HDEL', KEYS[1], 'paused', 'by', 'next')
redis.call('HINCRBY', KEYS[1], 'rev', 1)
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'next', ARGV[6])
  redis.call('ZADD', KEYS[2], ARGV[7], ARGV[4])
end
return 'resumed'
