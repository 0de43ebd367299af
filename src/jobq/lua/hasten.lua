-- hasten.lua: queue jobs now that wait for a time, due or not.
-- KEYS[1]  quarantine   jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4+] job ids
-- Returns  {word, ...} in order: queued | gone | the state that forbids it
-- Keys built inside: P:job:<id>, P:queue:<q>, P:scheduled:<q>, jobq:retrying:<q>; of jobs with an order: jobq:q:<q>,
--          jobq:order:<q>.
-- Idempotent: a job that the first call queued answers queued.
-- Full memory: the first write is ZREM, which frees.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local STATES = { queued = 'queued', started = 'running', finished = 'succeeded', failed = 'dead', stopped = 'dead',
  canceled = 'cancelled' }
local words, push, order = {}, {}, {}
redis.call('ZREM', KEYS[1], '')
for a = 4, #ARGV do
  local id, word = ARGV[a], 'gone'
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'origin', 'q', 'park', 'or')
  if row.err then
    redis.call('ZADD', KEYS[1], now, id)
  elseif row[1] == 'scheduled' and row[2] then
    word = 'queued'
    redis.call('ZREM', P .. 'scheduled:' .. row[2], id)
    redis.call('ZREM', N .. 'retrying:' .. row[2], id)
    redis.call('HSET', key, 'status', 'queued')
    -- Only jobs that plain rq made lack q, and that is how they are known.
    if row[3] then redis.call('HSET', key, 'q', string.format('%.0f', now)) end
    if row[5] then
      -- As promote does: its place among those with an order, unless the queue goes by turns.
      redis.call('HSETNX', N .. 'q:' .. row[2], 'order', 'o')
      if redis.call('HGET', N .. 'q:' .. row[2], 'order') == 'o' then
        redis.call('ZADD', N .. 'order:' .. row[2], string.format('%.0f', now + (tonumber(row[5]) - 5) * 30000), id)
      end
    end
    if not push[row[2]] then
      push[row[2]] = {}
      order[#order + 1] = row[2]
    end
    table.insert(push[row[2]], id)
  elseif row[1] then
    word = STATES[row[1]] or (row[4] and 'parked' or 'deferred')
  end
  words[#words + 1] = word
end
for _, queue in ipairs(order) do redis.call('RPUSH', P .. 'queue:' .. queue, unpack(push[queue])) end
return words
