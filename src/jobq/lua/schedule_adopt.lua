-- schedule_adopt.lua: a periodic job leaves rq-scheduler and becomes a schedule, in one step.
-- KEYS[1]  rq-scheduler's set   rq:scheduler:scheduled_jobs
-- KEYS[2]  schedule             jobq:schedule:<name>
-- KEYS[3]  due schedules        jobq:due
-- KEYS[4]  all schedules        jobq:schedules
-- KEYS[5]  rq's job             P:job:<id>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  id   ARGV[5] score that it was read with   ARGV[6] name   ARGV[7] digest of all   ARGV[8] digest of the times
-- ARGV[9]  spec   ARGV[10] payload   ARGV[11] next slot   ARGV[12] ms at which it is looked at   ARGV[13] seconds to keep 5
-- Returns  adopted | changed (rq-scheduler moved it) | exists (a schedule of the name)
-- Idempotent: an entry that has left answers changed.
-- Full memory: the first write is ZREM, which frees.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local score = redis.call('ZSCORE', KEYS[1], ARGV[4])
if not score or tonumber(score) ~= tonumber(ARGV[5]) then return 'changed' end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'exists' end
redis.call('ZREM', KEYS[1], ARGV[4])
redis.call('HSET', KEYS[2], 'spec', ARGV[9], 'data', ARGV[10], 'digest', ARGV[7], 'times', ARGV[8], 'source', '',
  'made', string.format('%.0f', now), 'rev', '1', 'next', ARGV[11])
redis.call('HSET', KEYS[4], ARGV[6], '')
redis.call('ZADD', KEYS[3], ARGV[12], ARGV[6])
if redis.call('TTL', KEYS[5]) == -1 then redis.call('EXPIRE', KEYS[5], ARGV[13]) end
return 'adopted'
