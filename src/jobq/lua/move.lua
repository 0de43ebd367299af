-- move.lua: put queued jobs at the back of another queue.
-- KEYS[1]  list to leave    P:queue:<from>
-- KEYS[2]  list to enter    P:queue:<to>
-- KEYS[3]  set of queues    P:queues
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] from   ARGV[5] to
-- ARGV[6+] ids that stand at the head of the list
-- Returns  {word, ...} in order: moved | dropped (its entry was in vain, and is gone) | late (it has left meanwhile)
-- Keys built inside: P:job:<id>; of jobs with an order or a tenant, for both queues: jobq:q:<q>, jobq:order:<q>,
--          jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- A job keeps its age, its order, its dedup key and its limits: none of them is the queue's.
-- Idempotent: a job that the first call moved answers moved.
-- Full memory: the first write is LREM, which frees.
local P, N, from, to = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local words, push = {}, {}

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

-- Takes a queued job out of its place.
local function displace(queue, id, order, tenant)
  if tenant then
    redis.pcall('SREM', N .. 'fair:' .. queue, id)
    redis.pcall('ZREM', N .. 'turn:' .. queue .. ':' .. tenant, id)
  elseif order then
    redis.pcall('ZREM', N .. 'order:' .. queue, id)
  end
end

-- Both lists are lists, or nothing is moved.
redis.call('LLEN', KEYS[1])
redis.call('LLEN', KEYS[2])
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
for a = 6, #ARGV do
  local id, word = ARGV[a], 'late'
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'origin', 'q', 'or', 'tn')
  local queued = not row.err and row[1] == 'queued'
  if queued and row[2] == to then
    word = 'moved'
  elseif redis.call('LPOS', KEYS[1], id, 'MAXLEN', 1000) then
    redis.call('LREM', KEYS[1], 1, id)
    if not row.err then displace(from, id, row[4], row[5]) end
    word = 'dropped'
    if queued and row[2] == from then
      redis.call('HSET', P .. 'job:' .. id, 'origin', to)
      push[#push + 1] = id
      place(to, id, tonumber(row[3] or '') or now, row[4], row[5])
      word = 'moved'
    end
  end
  words[#words + 1] = word
end
if #push > 0 then
  redis.call('RPUSH', KEYS[2], unpack(push))
  redis.call('SADD', KEYS[3], KEYS[2])
end
return words
