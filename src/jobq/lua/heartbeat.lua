-- heartbeat.lua: extend leases, and say which are lost and whose jobs were asked to stop.
-- KEYS[1]  leases            jobq:leases
-- KEYS[2]  cancel requests   jobq:cancels
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  lease ms   ARGV[5] number of leases, n   ARGV[6..5+n] <id>:<token>   ARGV[6+n..] their ids
-- Returns  {{lost member, ...}, {cancelled id, ...}}
-- Idempotent by nature. Never writes a job hash, which would revive a deleted one.
-- Full memory: the first write is a ZREM of nobody; a bare ZADD would be refused, and the leases would expire.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local ends, n = now + tonumber(ARGV[4]), tonumber(ARGV[5])
local lost, cancelled = {}, {}
redis.call('ZREM', KEYS[1], '')
for first = 6, 5 + n, 400 do
  local last = math.min(5 + n, first + 399)
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(ARGV, first, last))
  -- Of the wrong type, it costs requests to stop, and no lease.
  local asked = redis.pcall('SMISMEMBER', KEYS[2], unpack(ARGV, first + n, last + n))
  local extend = {}
  for i = first, last do
    if scores[i - first + 1] then
      local k = #extend
      extend[k + 1], extend[k + 2] = ends, ARGV[i]
      if asked[i - first + 1] == 1 then cancelled[#cancelled + 1] = ARGV[i + n] end
    else
      lost[#lost + 1] = ARGV[i]
    end
  end
  if #extend > 0 then redis.call('ZADD', KEYS[1], 'XX', 'GT', unpack(extend)) end
end
return { lost, cancelled }
