-- progress.lua: note how far a job is, while its lease stands.
-- KEYS[1]  job hash   P:job:<id>
-- KEYS[2]  leases     jobq:leases
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] <id>:<token>   ARGV[5] text
-- Returns  1 noted | 0 the lease is lost.   Idempotent by nature.
-- Full memory: the first write is a ZREM of nobody; a refusal would cost the settle that goes along.
if not redis.call('ZSCORE', KEYS[2], ARGV[4]) then return 0 end
local found = redis.pcall('HEXISTS', KEYS[1], 'status')
-- A deleted job must not come back as a hash of one field.
if found ~= 1 then return 0 end
redis.call('ZREM', KEYS[2], '')
redis.call('HSET', KEYS[1], 'pr', ARGV[5])
return 1
