-- hasten.lua: queue jobs now that wait for a time, due or not.
-- KEYS[1]  quarantine   jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4+] job ids
-- Returns  {word, ...} in order: queued | gone | the state that forbids it
-- Keys built inside: P:job:<id>, P:queue:<q>, P:scheduled:<q>, jobq:retrying:<q>; of jobs with an order or a tenant:
--          jobq:q:<q>, jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- Idempotent: a job that the first call queued answers queued.
-- Full memory: the first write is ZREM, which frees.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
-- From here on a key of the wrong type is as good as empty, and nothing is written to it: it costs itself alone.
local raw, EMPTY = redis, { GET = false, HGET = false, LPOP = false, LPOS = false, LLEN = 0, ZCARD = 0, SCARD = 0,
  ZSCORE = false }
local redis = { pcall = raw.pcall, call = function(...)
  local reply = raw.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not tostring(reply.err):find('WRONGTYPE', 1, true) then return raw.call(...) end
  local empty = EMPTY[(...)]
  if empty == nil then return {} end
  return empty
end }
local STATES = { queued = 'queued', started = 'running', finished = 'succeeded', failed = 'dead', stopped = 'dead',
  canceled = 'cancelled' }
local words, push, order = {}, {}, {}
redis.call('ZREM', KEYS[1], '')

-- Gives a queued job its place: among its tenant's jobs, else among those of no tenant, by the moment from which it
-- waits and its order. Those that are placed in one call keep their order. A key of the wrong type gives no place.
local placed = 0
local function place(queue, id, at, order, tenant)
  if not order and not tenant then return end
  local function whole(text) return tonumber((text or ''):match('^%d+$') or '') end
  local state, kind = N .. 'q:' .. queue, tenant and 'fair' or 'order'
  local row = redis.pcall('HMGET', state, kind, 'turn', 'step')
  if not row[1] then redis.pcall('HSET', state, kind, '1') end
  if not (at > 0 and at < 1e15) then at = 0 end
  placed = placed + 1
  at = at + placed / 1000 + ((whole(order) or 5) - 5) * (tonumber(row[3] or '') or 30000)
  local zset = N .. 'order:' .. queue
  if tenant then
    -- Turns are two apart: a tenant of whom nothing waited comes between, before anybody has a second one.
    redis.pcall('ZADD', N .. 'turns:' .. queue, 'NX', (whole(row[2]) or 0) + 1, tenant)
    redis.pcall('SADD', N .. 'fair:' .. queue, id)
    zset = N .. 'turn:' .. queue .. ':' .. tenant
  end
  redis.pcall('ZADD', zset, string.format('%.3f', at), id)
end

for a = 4, #ARGV do
  local id, word = ARGV[a], 'gone'
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'origin', 'q', 'park', 'or', 'tn')
  if row.err then
    redis.call('ZADD', KEYS[1], now, id)
  elseif row[1] == 'scheduled' and row[2] then
    word = 'queued'
    redis.call('ZREM', P .. 'scheduled:' .. row[2], id)
    redis.call('ZREM', N .. 'retrying:' .. row[2], id)
    redis.call('HSET', key, 'status', 'queued')
    -- Only jobs that plain rq made lack q, and that is how they are known.
    if row[3] then redis.call('HSET', key, 'q', string.format('%.0f', now)) end
    place(row[2], id, now, row[5], row[6])
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
