-- audit_schedules.lua: find schedules that nobody looks at, and names without a schedule, and set it right when asked.
-- KEYS[1]  all schedules   jobq:schedules
-- KEYS[2]  due schedules   jobq:due
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = set it right   ARGV[5+] names
-- Returns  {'' nothing is wrong | not_due | ghost, ...}
-- Keys built inside: jobq:schedule:<name>.
-- Idempotent: what is due stays as it is.
-- Full memory: the first write is a ZREM of nobody.
local N, fix = ARGV[3], ARGV[4] == '1'
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
if fix then redis.pcall('ZREM', KEYS[2], '') end
local out = {}
for a = 5, #ARGV do
  local name, word = ARGV[a], ''
  local reason = redis.pcall('HGET', KEYS[1], name)
  local row = redis.pcall('HMGET', N .. 'schedule:' .. name, 'rev', 'next', 'paused')
  if type(reason) == 'string' and not row.err then
    if redis.call('EXISTS', N .. 'schedule:' .. name) == 0 then
      word = 'ghost'
      if fix then redis.call('HDEL', KEYS[1], name) end
    elseif reason == '' and row[1] and row[2] and not row[3] and not redis.pcall('ZSCORE', KEYS[2], name) then
      word = 'not_due'
      if fix then redis.pcall('ZADD', KEYS[2], string.format('%.0f', tonumber(row[2]) or now), name) end
    end
  end
  out[#out + 1] = word
end
return out
