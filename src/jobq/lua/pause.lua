-- pause.lua: let no lease begin on a queue, until it is resumed or a time has come.
-- KEYS[1]  queue state   jobq:q:<q>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] queue   ARGV[5] until, ms; 0 = resume only
-- ARGV[6]  by   ARGV[7] reason
-- Returns  1.   Publishes the queue on jobq:wake.   Idempotent by nature.   Full memory: the first write is HDEL.
redis.call('HDEL', KEYS[1], 'by', 'reason')
redis.call('HSET', KEYS[1], 'paused', '1', 'until', ARGV[5], 'by', ARGV[6], 'reason', ARGV[7])
redis.call('PUBLISH', ARGV[3] .. 'wake', ARGV[4])
return 1
