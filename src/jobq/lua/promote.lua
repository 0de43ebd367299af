-- promote.lua: move due jobs of some queues into their lists.
-- KEYS[1]  quarantine   jobq:quarantine
-- KEYS[2]  gates        jobq:gates
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] most jobs per queue   ARGV[5+] queue names
-- Returns  {count, ms of the next due job or -1, 1 = a gate may open: see open.lua}
-- Keys built inside: P:scheduled:<q>, P:queue:<q>, P:job:<id>, jobq:retrying:<q>; of jobs with an order or a tenant:
--          jobq:q:<q>, jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- Idempotent: a due id is in the set that a cancel removes it from too, so exactly one of the two finds it.
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
local count, next_due = 0, -1
local until_s = string.format('%.3f', now / 1000)
local most = tonumber(ARGV[4])

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

for a = 5, #ARGV do
  local queue = ARGV[a]
  local zset = P .. 'scheduled:' .. queue
  local head = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
  if head[1] and tonumber(head[2]) * 1000 <= now + 0.5 then
    local rows = redis.call('ZRANGEBYSCORE', zset, '-inf', until_s, 'WITHSCORES', 'LIMIT', 0, most)
    local ids, found = {}, {}
    for i = 1, #rows, 2 do
      local id = rows[i]
      ids[#ids + 1] = id
      local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'q', 'or', 'tn')
      if row.err then
        found[#found + 1] = { id = id, broken = true }
      elseif row[1] == 'scheduled' then
        found[#found + 1] = { id = id, q = row[2], due = tonumber(rows[i + 1]) * 1000, order = row[3], tenant = row[4] }
      end
    end
    if #ids > 0 then
      redis.call('ZREM', zset, unpack(ids))
      redis.call('ZREM', N .. 'retrying:' .. queue, unpack(ids))
    end
    local push = {}
    for _, job in ipairs(found) do
      local key = P .. 'job:' .. job.id
      if job.broken then
        redis.call('ZADD', KEYS[1], now, job.id)
      else
        push[#push + 1] = job.id
        place(queue, job.id, job.due, job.order, job.tenant)
        if job.q then
          -- The due time, not now: lateness counts as waiting.
          redis.call('HSET', key, 'status', 'queued', 'q', string.format('%.0f', job.due))
        else
          redis.call('HSET', key, 'status', 'queued')
        end
      end
    end
    if #push > 0 then redis.call('RPUSH', P .. 'queue:' .. queue, unpack(push)) end
    count = count + #push
    head = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
  end
  if head[1] then
    local due = math.ceil(tonumber(head[2]) * 1000 - 0.5)
    if next_due < 0 or due < next_due then next_due = due end
  end
end
local gate = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return { count, next_due, gate[1] and tonumber(gate[2]) <= now and 1 or 0 }
