-- brake.lua: let queues refuse new jobs while memory is short, and no longer than a moment after nobody looks.
-- KEYS[1]  pulse           jobq:pulse
-- KEYS[2]  set of queues   P:queues
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  ms between two looks   ARGV[5] ms that a refusal holds   ARGV[6] points below its threshold at which it ends
-- ARGV[7]  threshold, in percent of maxmemory, of queues not named here
-- then per queue: name, threshold
-- Returns  {percent in use at the last look or -1, maxmemory or 0, queue, on | off, ...} with those queues where it has
--          just changed: none when somebody else has looked so soon before
-- Keys built inside: jobq:q:<q>.
-- Idempotent: a repeat finds that somebody has looked.
-- Full memory: the first write is a HDEL of nothing.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local last = redis.call('HMGET', KEYS[1], 'm', 'mem', 'max')
local looked = tonumber(last[1] or '')
if looked and math.abs(now - looked) < tonumber(ARGV[4]) then
  return { tonumber(last[2] or '') or -1, tonumber(last[3] or '') or 0 }
end
redis.call('HDEL', KEYS[1], '')

-- A user who may not ask has no brake; without maxmemory there is none either.
local info = redis.pcall('INFO', 'memory')
local function number(name)
  return type(info) == 'string' and tonumber(info:match('\n' .. name .. ':(%d+)') or '0') or 0
end
local most = number('maxmemory')
-- What Redis compares with maxmemory: all but the buffers of replicas and of the append-only file.
local used = number('used_memory') - number('mem_not_counted_for_evict')
local percent = most > 0 and 100 * used / most or -1
local shown = string.format('%.0f', percent)
redis.call('HSET', KEYS[1], 'm', string.format('%.0f', now), 'mem', shown, 'max', string.format('%.0f', most))
local out, seen = { tonumber(shown), most }, {}

local function judge(queue, threshold)
  local key = N .. 'q:' .. queue
  local ends = tonumber(redis.call('HGET', key, 'shed') or '')
  local was = ends ~= nil and ends > now
  local on = percent >= (was and threshold - tonumber(ARGV[6]) or threshold)
  if on then
    redis.call('HSET', key, 'shed', string.format('%.0f', now + tonumber(ARGV[5])), 'mem', shown)
  elseif ends then
    redis.call('HDEL', key, 'shed', 'mem')
  end
  if on ~= was then
    out[#out + 1] = queue
    out[#out + 1] = on and 'on' or 'off'
  end
end

for a = 8, #ARGV, 2 do
  seen[ARGV[a]] = true
  judge(ARGV[a], tonumber(ARGV[a + 1]))
end
-- What fills memory may be a queue that nobody serves.
for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local queue = key:sub(#P + 7)
  if not seen[queue] then judge(queue, tonumber(ARGV[7])) end
end
return out
