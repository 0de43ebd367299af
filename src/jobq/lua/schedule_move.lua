-- schedule_move.lua: let the next slot of a schedule be another moment; those after it stay.
-- KEYS[1]  schedule        jobq:schedule:<name>
-- KEYS[2]  due schedules   jobq:due
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] name   ARGV[5] next slot, ms
-- Returns  moved | gone (or paused, or ended)
-- Full memory: the first write is a HSET, so all is refused and nothing written.
local row = redis.pcall('HMGET', KEYS[1], 'next', 'paused')
if row.err or not row[1] or row[2] then return 'gone' end
redis.call('HSET', KEYS[1], 'next', ARGV[5])
redis.call('HINCRBY', KEYS[1], 'rev', 1)
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4])
return 'moved'
