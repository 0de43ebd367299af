-- obeyed.lua: forget an order that a worker has carried out, unless another has been given since.
-- KEYS[1]  orders   jobq:orders
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] worker   ARGV[5] the order
-- Returns  1 forgotten | 0.   Idempotent by nature.   Full memory: it only frees.
if redis.call('HGET', KEYS[1], ARGV[4]) ~= ARGV[5] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[4])
