-- reschedule.lua: let a scheduled job become due at another time.
-- KEYS[1]  job hash         P:job:<id>
-- KEYS[2]  scheduled zset   P:scheduled:<q>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] id   ARGV[5] due, ms
-- Returns  moved | gone | the state that forbids it
-- Full memory: the first write is ZREM of nobody, so it is done all the same.
local status = redis.pcall('HGET', KEYS[1], 'status')
if type(status) ~= 'string' then return 'gone' end
if status ~= 'scheduled' or not redis.call('ZSCORE', KEYS[2], ARGV[4]) then return status end
redis.call('ZREM', KEYS[2], '')
redis.call('ZADD', KEYS[2], 'XX', string.format('%.3f', tonumber(ARGV[5]) / 1000), ARGV[4])
-- A job of plain rq's has no q: by that a claim knows to bring rq's own fields along.
if redis.call('HEXISTS', KEYS[1], 'q') == 1 then redis.call('HSET', KEYS[1], 'q', ARGV[5]) end
return 'moved'
