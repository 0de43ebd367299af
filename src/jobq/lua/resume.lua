-- resume.lua: end a pause, and what RateLimited closed a queue for.
-- KEYS[1]  queue state   jobq:q:<q>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] queue
-- Returns  1 when the queue was paused, else 0.   Publishes the queue on jobq:wake.   Idempotent by nature.
local was = redis.call('HDEL', KEYS[1], 'paused', 'until', 'by', 'reason')
redis.call('HDEL', KEYS[1], 'closed', 'closed_by')
redis.call('PUBLISH', ARGV[3] .. 'wake', ARGV[4])
return was > 0 and 1 or 0
