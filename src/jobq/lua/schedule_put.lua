-- schedule_put.lua: write one schedule, unless it is there already, or is not the caller's to write.
-- KEYS[1]  schedule         jobq:schedule:<name>
-- KEYS[2]  due schedules    jobq:due
-- KEYS[3]  all schedules    jobq:schedules
-- KEYS[4]  declaring sets   jobq:declared:<source>, of the caller's source
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  name   ARGV[5] source, '' = added at run time   ARGV[6] fingerprint of the caller's set
-- ARGV[7]  1 = may replace   ARGV[8] digest of all   ARGV[9] digest of the times   ARGV[10] spec   ARGV[11] payload
-- ARGV[12] next slot, '' = none   ARGV[13] ms at which it is looked at
-- Returns  added | changed | same | exists | declared (in code) | theirs | older
-- Keys built inside: jobq:declared:<source>, of the schedule's own source.
-- Idempotent: a schedule of the same digest answers same.
-- Full memory: the first write is a HSET, so all is refused and nothing written.
local N = ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local name, source, replace = ARGV[4], ARGV[5], ARGV[7] == '1'
local slot, look_at = ARGV[12], ARGV[13]
if source ~= '' and redis.call('HGET', KEYS[4], 'current') ~= ARGV[6] then return 'older' end
local row = redis.pcall('HMGET', KEYS[1], 'digest', 'times', 'source', 'next', 'paused', 'rev')
local there = row.err ~= nil or row[6] ~= false
if row.err then row = {} end
if there and (row[3] or '') ~= source then
  if source ~= '' then
    if (row[3] or '') == '' and not row.err then return 'theirs' end
    if row[3] and redis.call('EXISTS', N .. 'declared:' .. row[3]) == 1 then
      -- Two applications may share a module.
      return row[1] == ARGV[8] and 'same' or 'theirs'
    end
  else
    return 'declared'
  end
end
if there and row[1] == ARGV[8] and row[3] == source then
  redis.call('HSETNX', KEYS[3], name, '')
  if row[4] and not row[5] then redis.call('ZADD', KEYS[2], 'NX', slot == '' and row[4] or look_at, name) end
  return 'same'
end
if there and source == '' and not replace then return 'exists' end
if there and not row[6] then redis.call('UNLINK', KEYS[1]) end
redis.call('HSET', KEYS[1], 'spec', ARGV[10], 'data', ARGV[11], 'digest', ARGV[8], 'times', ARGV[9], 'source', source)
redis.call('HSETNX', KEYS[1], 'made', string.format('%.0f', now))
redis.call('HINCRBY', KEYS[1], 'rev', 1)
redis.call('HSET', KEYS[3], name, '')
if there and row[2] == ARGV[9] and row[4] then
  -- The same times: a slot that is due now is not lost to a change of something else.
  if not row[5] then redis.call('ZADD', KEYS[2], 'NX', slot == '' and row[4] or look_at, name) end
elseif slot == '' then
  redis.call('HDEL', KEYS[1], 'next')
  redis.call('ZREM', KEYS[2], name)
else
  redis.call('HSET', KEYS[1], 'next', slot)
  if not row[5] then redis.call('ZADD', KEYS[2], look_at, name) end
end
return there and 'changed' or 'added'
