-- limit.lua: limit a queue in place of what the settings say, or as they say again.
-- KEYS[1]  queue state   jobq:q:<q>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] queue
-- ARGV[5]  '<until, ms; 0 = for good>|<gates>', gates as in claim.lua, none = no limit; '' = as the settings say
-- ARGV[6]  '<until>|<most jobs that may wait>', none = any number; '' = as the settings say
-- Returns  1.   Publishes the queue on jobq:wake.   Idempotent by nature.   Full memory: the first write is HDEL.
redis.call('HDEL', KEYS[1], 'limit_set', 'max_set', 'closed', 'closed_by')
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'limit_set', ARGV[5], 'max_set', ARGV[6]) end
redis.call('PUBLISH', ARGV[3] .. 'wake', ARGV[4])
return 1
