-- override.lua: replace the limits that operators have set for tasks, if they are still as they were read.
-- KEYS[1]  limits set by operators   jobq:limits
-- KEYS[2]  gates                     jobq:gates
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  the text as it was read, see claim.lua   ARGV[5] as it is to be; '' = none is set
-- ARGV[6]  when all of it is over, ms since 1970; 0 = never   ARGV[7+] gates that the change may open
-- Returns  1 | 0: somebody else has changed it
-- Idempotent: what is there already is done.   Full memory: the first write is a ZREM of nobody.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
-- Of the wrong type: it limits nothing, and is written over.
local text = redis.pcall('GET', KEYS[1]) or ''
if type(text) == 'table' then text = '' end
if text ~= ARGV[4] and text ~= ARGV[5] then return 0 end
redis.call('ZREM', KEYS[2], '')
if ARGV[5] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[5])
  if ARGV[6] ~= '0' then redis.call('PEXPIREAT', KEYS[1], ARGV[6]) end
end
for i = 7, #ARGV do redis.call('ZADD', KEYS[2], 'XX', 'LT', now, ARGV[i]) end
return 1
