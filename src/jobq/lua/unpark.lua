-- unpark.lua: queue the parked jobs of one bucket again.
-- KEYS[1]  parked ids       jobq:parked:<q>:<bucket>
-- KEYS[2]  parked buckets   jobq:parked:<q>
-- KEYS[3]  queue state      jobq:q:<q>
-- KEYS[4]  deferred zset    P:deferred:<q>
-- KEYS[5]  queue list       P:queue:<q>
-- KEYS[6]  quarantine       jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] bucket   ARGV[5] most jobs
-- Returns  count of jobs queued
-- Keys built inside: P:job:<id>; of jobs with an order or a tenant: jobq:q:<q>, jobq:order:<q>, jobq:turns:<q>,
--          jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- Idempotent: what was moved is parked no more.   Full memory: the first write is ZREM.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

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

local ids, push = redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[5]) - 1), {}
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
if #ids > 0 then
  redis.call('ZREM', KEYS[1], unpack(ids))
  redis.call('ZREM', KEYS[4], unpack(ids))
end
for _, id in ipairs(ids) do
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'park', 'q', 'or', 'tn')
  if row.err then
    redis.call('ZADD', KEYS[6], now, id)
  elseif row[1] == 'deferred' and row[2] then
    redis.call('HDEL', key, 'park', 'pb')
    if row[3] then
      redis.call('HSET', key, 'status', 'queued', 'q', string.format('%.0f', now))
    else
      redis.call('HSET', key, 'status', 'queued')
    end
    push[#push + 1] = id
    place(KEYS[3]:sub(#N + 3), id, now, row[4], row[5])
  end
end
if #push > 0 then redis.call('RPUSH', KEYS[5], unpack(push)) end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SREM', KEYS[2], ARGV[4])
  if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('HDEL', KEYS[3], 'parked') end
end
return #push
