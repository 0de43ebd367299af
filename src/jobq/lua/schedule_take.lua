-- schedule_take.lua: the schedules that are due, kept from other workers for a moment.
-- KEYS[1]  due schedules   jobq:due
-- KEYS[2]  all schedules   jobq:schedules
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] most schedules   ARGV[5] the moment, ms
-- Returns  {now ms, ms of the next one after these or -1, name, {error} | {'', rev, next, spec, data, job}, ... two each}
-- Keys built inside: jobq:schedule:<name>.
-- Idempotent: taking moves nothing on; whoever took them and died is followed by another after the moment.
-- Full memory: the first write is ZREM of nobody, so due schedules are still found.
local N = ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not head[1] then return { now, -1 } end
if tonumber(head[2]) > now then return { now, math.ceil(tonumber(head[2])) } end
local names = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[4]))
local answer, gone, again = { now, -1 }, { '' }, {}
for _, name in ipairs(names) do
  local row = redis.pcall('HMGET', N .. 'schedule:' .. name, 'rev', 'next', 'spec', 'data', 'job', 'paused')
  if row.err then
    answer[#answer + 1], answer[#answer + 2] = name, { row.err }
  elseif not row[1] and not row[3] then
    if redis.call('EXISTS', N .. 'schedule:' .. name) == 1 then
      answer[#answer + 1], answer[#answer + 2] = name, { 'its hash has no spec' }
    else
      gone[#gone + 1] = name
      redis.call('HDEL', KEYS[2], name)
    end
  elseif row[6] or not row[2] then
    gone[#gone + 1] = name
  else
    answer[#answer + 1] = name
    answer[#answer + 1] = { '', row[1] or '', row[2], row[3] or '', row[4] or '', row[5] or '' }
  end
end
redis.call('ZREM', KEYS[1], unpack(gone))
for k = 3, #answer, 2 do
  again[#again + 1], again[#again + 2] = now + tonumber(ARGV[5]), answer[k]
end
if #again > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(again)) end
head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if head[1] then answer[2] = math.ceil(tonumber(head[2])) end
return answer
