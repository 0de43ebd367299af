-- adopt.lua: a single job leaves rq-scheduler and becomes a scheduled job of ours, in one step.
-- KEYS[1]  rq-scheduler's set   rq:scheduler:scheduled_jobs
-- KEYS[2]  job hash             P:job:<id>
-- KEYS[3]  scheduled zset       P:scheduled:<q>
-- KEYS[4]  set of queues        P:queues
-- KEYS[5]  queue list           P:queue:<q>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] rq-scheduler's id   ARGV[5] score it was read with
-- ARGV[6]  id   ARGV[7] count of what follows, then field, value, ... of the job hash
-- Returns  adopted | changed (rq-scheduler moved it)
-- Idempotent: an entry that has left answers changed.
-- Full memory: the first write is ZREM, which frees.
local score = redis.call('ZSCORE', KEYS[1], ARGV[4])
if not score or tonumber(score) ~= tonumber(ARGV[5]) then return 'changed' end
local fields = { 'status', 'scheduled', 'q', string.format('%.0f', tonumber(score) * 1000) }
for k = 8, 7 + tonumber(ARGV[7]) do fields[k - 3] = ARGV[k] end
redis.call('ZREM', KEYS[1], ARGV[4])
-- What rq kept there is pickled, and not for us: none of it stays.
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(fields))
redis.call('ZADD', KEYS[3], string.format('%.3f', tonumber(score)), ARGV[6])
redis.call('SADD', KEYS[4], KEYS[5])
return 'adopted'
