-- schedule_break.lua: set a schedule aside that cannot be fired; it is looked at again later.
-- KEYS[1]  all schedules   jobq:schedules
-- KEYS[2]  due schedules   jobq:due
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] name   ARGV[5] reason   ARGV[6] again after ms
-- Returns  1 when it was in order before, else 0
-- Full memory: the first write is ZREM of nobody, so it is set aside all the same.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local before = redis.call('HGET', KEYS[1], ARGV[4])
redis.call('ZREM', KEYS[2], '')
redis.call('HSET', KEYS[1], ARGV[4], ARGV[5])
redis.call('ZADD', KEYS[2], 'XX', now + tonumber(ARGV[6]), ARGV[4])
return (not before or before == '') and 1 or 0
