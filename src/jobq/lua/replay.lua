-- replay.lua: queue dead or cancelled jobs again, as if they had never run; poison runs apart.
-- KEYS[1]  quarantine   jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4+] id, new payload ('' = as it is), ... two per job
-- Returns  {word, ...}: queued | conflict:<holder> | gone | the state that forbids it
-- Keys built inside: P:job:<id>, P:queue:<q>, P:failed:<q>, P:canceled:<q>, P:results:<id>, P:job:<id>:dependents,
--          P:job::<id>:dependencies, P:wip:<q>, jobq:attempts:<id>, jobq:dedup:<name>, jobq:leases, jobq:cancels; of jobs
--          with an order or a tenant: jobq:q:<q>, jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
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
local STATES = { queued = 'queued', started = 'running', finished = 'succeeded', scheduled = 'scheduled',
  deferred = 'deferred' }
local LIVE = { queued = true, scheduled = true, started = true, deferred = true, created = true,
  ready_to_enqueue = true, rate_limited = true }
-- What a run, its end or a gate has left in the hash. rq's ttl bounded the first wait, which is over.
local LEFT = { 'attempts', 'crashes', 'lost', 'cx', 'why', 'fp', 'st', 'sz', 'park', 'pb', 'pr', 'rp', 'gt', 'li',
  'started_at', 'ended_at', 'worker_name', 'ttl' }
local words, push, order = {}, {}, {}
local ended, registries, rare = {}, {}, {}
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

-- The live job that holds this dedup key instead of the one that is replayed, or nil.
local function rival(dk, id)
  local value = redis.call('GET', N .. 'dedup:' .. dk:sub(3))
  local mode, holder = (value or ''):match('^(%a):(.*)$')
  if not holder or holder == id then return nil end
  if mode == 'w' then return holder end
  local status = redis.pcall('HGET', P .. 'job:' .. holder, 'status')
  if type(status) ~= 'string' or not LIVE[status] or (mode == 's' and status == 'started') then return nil end
  return holder
end

-- rq's cancel of a running job leaves its lease: the run that replay allows must be the only one that can settle.
local wip = {}
local function unlease(queue, id)
  if not wip[queue] then
    wip[queue] = {}
    for _, member in ipairs(redis.call('ZRANGE', P .. 'wip:' .. queue, 0, -1)) do
      wip[queue][member:match('^[^:]*')] = member
    end
  end
  local member = wip[queue][id]
  if member then
    redis.call('ZREM', N .. 'leases', member)
    redis.call('ZREM', P .. 'wip:' .. queue, member)
  end
end

for a = 4, #ARGV, 2 do
  local id, word = ARGV[a], nil
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'origin', 'dk', 'q', 'data', 'or', 'tn', 'why')
  if row.err or not row[1] or not row[5] or not row[2] then
    word = 'gone'
  else
    local status, queue, dk = row[1], row[2], row[3]
    local dead = status == 'failed' or status == 'stopped'
    if not dead and status ~= 'canceled' then
      word = STATES[status] or status
    else
      local holder = dk and rival(dk, id)
      if holder then
        word = 'conflict:' .. holder
      else
        word = 'queued'
        local registry = P .. (dead and 'failed:' or 'canceled:') .. queue
        if not ended[registry] then
          ended[registry] = {}
          registries[#registries + 1] = registry
        end
        ended[registry][#ended[registry] + 1] = id
        unlease(queue, id)
        -- A window is not taken again: it says how often equal jobs may come, not that one may not be repaired.
        if dk and dk:sub(1, 2) ~= 'w:' then redis.call('SET', N .. 'dedup:' .. dk:sub(3), dk:sub(1, 2) .. id) end
        redis.call('HDEL', key, unpack(LEFT))
        local set = { 'status', 'queued' }
        -- Only jobs that plain rq made lack q, and that is how they are known.
        if row[4] then set[3], set[4] = 'q', string.format('%.0f', now) end
        -- What has crashed alone is mended or not: until it has run it stays a suspect, and takes nobody along.
        if row[8] == 'poison' then
          set[#set + 1] = 'crashes'
          set[#set + 1] = '1'
        end
        if ARGV[a + 1] ~= '' then
          set[#set + 1] = 'data'
          set[#set + 1] = ARGV[a + 1]
        end
        redis.call('HSET', key, unpack(set))
        redis.call('PERSIST', key)
        redis.call('PERSIST', P .. 'results:' .. id)
        redis.call('PERSIST', N .. 'attempts:' .. id)
        rare[#rare + 1] = P .. 'job:' .. id .. ':dependents'
        rare[#rare + 1] = P .. 'job::' .. id .. ':dependencies'
        rare[#rare + 1] = N .. 'done:' .. id
        if not push[queue] then
          push[queue] = {}
          order[#order + 1] = queue
        end
        push[queue][#push[queue] + 1] = id
        place(queue, id, now, row[6], row[7])
      end
    end
  end
  words[#words + 1] = word
end
for _, registry in ipairs(registries) do
  redis.call('ZREM', registry, unpack(ended[registry]))
  redis.call('SREM', N .. 'cancels', unpack(ended[registry]))
end
-- Hardly a job has any of these: one look at all of them.
if rare[1] and redis.call('EXISTS', unpack(rare)) > 0 then
  for at = 1, #rare, 3 do
    redis.call('PERSIST', rare[at])
    redis.call('PERSIST', rare[at + 1])
    redis.call('DEL', rare[at + 2])
  end
end
for _, queue in ipairs(order) do redis.call('RPUSH', P .. 'queue:' .. queue, unpack(push[queue])) end
return words
