-- restore.lua: put an archived dead letter back as it was, unless a job of its id is there.
-- KEYS[1]  job hash          P:job:<id>
-- KEYS[2]  failed registry   P:failed:<q>
-- KEYS[3]  earlier attempts  jobq:attempts:<id>
-- KEYS[4]  results stream    P:results:<id>
-- KEYS[5]  log               jobq:log:<id>
-- KEYS[6]  names of queues   P:queues
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  id   ARGV[5] queue   ARGV[6] seconds to keep it
-- ARGV[7+] four lists, each after its length: names and values of the hash, attempts, names and values of the last
--          result, lines of the log
-- Returns  restored | there
-- Idempotent: what the first call restored answers restored, as long as it is still that dead letter.
-- Full memory: the first write is HSET; refused whole, nothing written.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local id, keep = ARGV[4], math.max(60, tonumber(ARGV[6]))
local pos = 7
local function list()
  local count = tonumber(ARGV[pos])
  local found = { unpack(ARGV, pos + 1, pos + count) }
  pos = pos + 1 + count
  return found
end
local job, attempts, result, log = list(), list(), list(), list()

if redis.call('EXISTS', KEYS[1]) == 1 then
  local fields = {}
  for at = 1, #job, 2 do fields[job[at]] = job[at + 1] end
  local row = redis.pcall('HMGET', KEYS[1], 'status', 'ended_at')
  if row.err or row[1] ~= fields.status or row[2] ~= (fields.ended_at or false) then return 'there' end
  return 'restored'
end
redis.call('HSET', KEYS[1], unpack(job))
redis.call('EXPIRE', KEYS[1], keep)
redis.call('ZADD', KEYS[2], math.floor(now / 1000) + keep, id)
redis.call('SADD', KEYS[6], ARGV[2] .. 'queue:' .. ARGV[5])
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5])
if #attempts > 0 then
  redis.call('RPUSH', KEYS[3], unpack(attempts))
  redis.call('EXPIRE', KEYS[3], keep)
end
if #result > 0 then
  redis.call('XADD', KEYS[4], '*', unpack(result))
  redis.call('EXPIRE', KEYS[4], keep)
end
if #log > 0 then
  redis.call('RPUSH', KEYS[5], unpack(log))
  redis.call('EXPIRE', KEYS[5], keep)
end
return 'restored'
