-- schedule_remove.lua: delete one schedule; the jobs that it has fired stay.
-- KEYS[1]  schedule         jobq:schedule:<name>
-- KEYS[2]  due schedules    jobq:due
-- KEYS[3]  all schedules    jobq:schedules
-- KEYS[4]  declaring sets   jobq:declared:<source>, of the caller's source
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  name   ARGV[5] source, '' = at run time   ARGV[6] fingerprint of the caller's set
-- Returns  removed | gone | declared (in code that a worker runs) | theirs | older
-- Keys built inside: jobq:declared:<source>, of the schedule's own source.
-- Full memory: the first write is UNLINK, which frees.
local N, name, source = ARGV[3], ARGV[4], ARGV[5]
if source ~= '' and redis.call('HGET', KEYS[4], 'current') ~= ARGV[6] then return 'older' end
local row = redis.pcall('HMGET', KEYS[1], 'source', 'rev')
if not row.err and not row[2] and redis.call('HEXISTS', KEYS[3], name) == 0 then return 'gone' end
local owner = not row.err and row[1] or ''
if source ~= '' then
  if owner ~= source then return 'theirs' end
elseif owner ~= '' and redis.call('EXISTS', N .. 'declared:' .. owner) == 1 then
  return 'declared'
end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], name)
redis.call('HDEL', KEYS[3], name)
return 'removed'
