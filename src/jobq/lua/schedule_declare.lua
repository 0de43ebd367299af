-- schedule_declare.lua: say that a live worker declares this set of schedules, and learn whether it is the current one.
-- KEYS[1]  declaring sets   jobq:declared:<source>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] fingerprint   ARGV[5] ms that a set stays known
-- Returns  current | older
-- The newest set that a live worker declares counts: while two versions run, the one that was seen last for the first
-- time; an older one again when no worker has declared the newer for that long.
-- Full memory: the first write is HDEL of nobody, so a set stays known.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local mine, ttl = ARGV[4], tonumber(ARGV[5])
local rows = redis.call('HGETALL', KEYS[1])
local since, newest, first, forget = nil, mine, -1, { '' }
for k = 1, #rows, 2 do
  local print = rows[k]
  if print ~= 'current' then
    local seen, last = rows[k + 1]:match('^(%d+):(%d+)$')
    seen, last = tonumber(seen or 0), tonumber(last or 0)
    -- A clock that went back must not keep a set for ever.
    if print ~= mine and (last < now - ttl or last > now + ttl) then
      forget[#forget + 1] = print
    elseif print == mine and last >= now - ttl then
      since = seen
    elseif print ~= mine and seen > first then
      newest, first = print, seen
    end
  end
end
redis.call('HDEL', KEYS[1], unpack(forget))
-- Two sets of one millisecond are told apart by their fingerprints.
since = since or math.max(now, first + 1)
if since > first or (since == first and mine > newest) then newest = mine end
redis.call('HSET', KEYS[1], mine, string.format('%.0f:%.0f', since, now), 'current', newest)
redis.call('PEXPIRE', KEYS[1], ttl)
return newest == mine and 'current' or 'older'
