-- release.lua: queue the children of ended jobs, as far as all their parents allow it, by rq's own rule.
-- KEYS[1]  ended parents   jobq:after
-- KEYS[2]  quarantine      jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] most children
-- Returns  {children queued, parents done with}
-- Keys built inside: P:job:<id>, P:job:<id>:dependents, P:job::<id>:dependencies, P:deferred:<q>, P:queue:<q>; of jobs
--          with an order or a tenant: jobq:q:<q>, jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- Idempotent: a child leaves deferred once; the parent leaves jobq:after last.
-- Full memory: the first write is a ZREM of nobody.
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
local released, parents, room = 0, 0, tonumber(ARGV[4])
redis.call('ZREM', KEYS[2], '')

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

local function status_of(id)
  local status = redis.pcall('HGET', P .. 'job:' .. id, 'status')
  return type(status) == 'string' and status or nil
end

-- A parent that is gone does not hold its children back; neither does a failed one, if the child allows it. Whose
-- parents cannot be read stays where it is.
local function ready(child, lenient)
  local names = redis.pcall('SMEMBERS', P .. 'job::' .. child .. ':dependencies')
  if names.err then return false end
  for _, parent in ipairs(names) do
    local status = status_of(parent)
    if status and status ~= 'finished' and not (lenient and status == 'failed') then return false end
  end
  return true
end

for _, parent in ipairs(redis.call('ZRANGE', KEYS[1], 0, 19)) do
  if room <= 0 then break end
  local set = P .. 'job:' .. parent .. ':dependents'
  local succeeded = status_of(parent) == 'finished'
  local children = redis.pcall('SRANDMEMBER', set, succeeded and room or 1000)
  for _, child in ipairs(children) do
    local key = P .. 'job:' .. child
    local row = redis.pcall('HMGET', key, 'status', 'origin', 'park', 'q', 'allow_dependency_failures', 'or', 'tn')
    if row.err then
      redis.call('ZADD', KEYS[2], now, child)
      redis.call('SREM', set, child)
    elseif row[1] == 'deferred' and row[2] and not row[3] and ready(child, row[5] == '1') then
      redis.call('ZREM', P .. 'deferred:' .. row[2], child)
      if row[4] then
        redis.call('HSET', key, 'status', 'queued', 'q', string.format('%.0f', now))
      else
        redis.call('HSET', key, 'status', 'queued')
      end
      redis.call('RPUSH', P .. 'queue:' .. row[2], child)
      place(row[2], child, now, row[6], row[7])
      redis.call('SREM', set, child)
      released = released + 1
      room = room - 1
    elseif succeeded then
      -- It waits for another parent, whose set names it too.
      redis.call('SREM', set, child)
      room = room - 1
    end
  end
  if not succeeded or children.err or redis.call('EXISTS', set) == 0 then
    redis.call('ZREM', KEYS[1], parent)
    parents = parents + 1
  end
end
return { released, parents }
