-- schedule_pause.lua: fire no more slots of a schedule.
-- KEYS[1]  schedule        jobq:schedule:<name>
-- KEYS[2]  due schedules   jobq:due
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] name   ARGV[5] by
-- Returns  paused | gone
-- Full memory: the first write is ZREM, which frees.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local row = redis.pcall('HMGET', KEYS[1], 'rev', 'paused')
if row.err or not row[1] then return 'gone' end
redis.call('ZREM', KEYS[2], ARGV[4])
if not row[2] then redis.call('HSET', KEYS[1], 'paused', string.format('%.0f', now), 'by', ARGV[5]) end
return 'paused'
