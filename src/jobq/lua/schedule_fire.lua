-- schedule_fire.lua: enqueue the due slots of one schedule and move it on, in one step.
-- KEYS[1]  schedule         jobq:schedule:<name>
-- KEYS[2]  due schedules    jobq:due
-- KEYS[3]  all schedules    jobq:schedules
-- KEYS[4]  queue list       P:queue:<q>
-- KEYS[5]  queue state      jobq:q:<q>
-- KEYS[6]  set of queues    P:queues
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  name   ARGV[5] rev   ARGV[6] slot that is next until now   ARGV[7] slot that is next then, '' = none
-- ARGV[8]  ms at which that is looked at   ARGV[9] slots dropped   ARGV[10] overlap
-- ARGV[11] dedup name or ''   ARGV[12] mode f|s|w   ARGV[13] window ms   ARGV[14] new payload or '' (as it is)
-- ARGV[15] number of slots, then per slot: slot, job id, count of what follows, field, value, ... of the job hash
-- Returns  {'stale'} | {'full', word, ...} | {'ok', word, ...}: queued | duplicate | overlap | mine, per slot dealt with
-- Keys built inside: P:job:<id>, jobq:dedup:<name>; of a queue with a most: P:scheduled:<q>, P:deferred:<q>; of jobs with an order or a tenant: jobq:q:<q>, jobq:order:<q>,
--          jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- Idempotent: a slot is dealt with only while the schedule stands at it, at this revision; its job id is its own.
-- Full memory: the first write is a HSET, so all is refused and nothing written: the slots stay due.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local row = redis.pcall('HMGET', KEYS[1], 'rev', 'next', 'paused', 'job')
if row.err or (row[1] or '') ~= ARGV[5] or row[2] ~= ARGV[6] or row[3] then return { 'stale' } end
-- The most jobs that may wait, nil for any number: what an operator has set, as long as it holds, else what the
-- settings say.
local function most_of(declared, set)
  local ends, text = (set or ''):match('^(%d+)|(%d*)$')
  if not ends or (ends ~= '0' and tonumber(ends) <= now) then text = declared or '' end
  return tonumber(text:match('^%d+$') or '')
end

-- How many wait: in line, for a time, and for whatever else.
local function waiting_in(queue)
  return redis.call('LLEN', P .. 'queue:' .. queue) + redis.call('ZCARD', P .. 'scheduled:' .. queue)
    + redis.call('ZCARD', P .. 'deferred:' .. queue)
end

local state = redis.call('HMGET', KEYS[5], 'shed', 'max', 'max_set')
local room = math.huge
if state[1] and (tonumber(state[1]) or 0) > now then
  room = 0
elseif state[2] or state[3] then
  local most = most_of(state[2], state[3])
  if most then room = most - waiting_in(KEYS[5]:sub(#N + 3)) end
end
local LIVE = { queued = true, scheduled = true, started = true, deferred = true, created = true,
  ready_to_enqueue = true, rate_limited = true }
local overlap, name, mode = ARGV[10], ARGV[11], ARGV[12]

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

-- Whether a live job holds the dedup key.
local function held()
  local value = redis.call('GET', N .. 'dedup:' .. name)
  local by, id = (value or ''):match('^(%a):(.*)$')
  if not id then return false end
  if by == 'w' then return true end
  local status = status_of(id)
  return status ~= nil and LIVE[status] and not (by == 's' and status == 'started')
end

local taken = name ~= '' and held()
local before = row[4] and status_of(row[4]) or nil
local answer, plan, pos = { 'ok' }, {}, 16
local next_slot, look_at, last_job = ARGV[7], ARGV[8], row[4]
local last_slot
for _ = 1, tonumber(ARGV[15]) do
  local slot, id = ARGV[pos], ARGV[pos + 1]
  local first = pos + 3
  local last = first + tonumber(ARGV[pos + 2]) - 1
  pos = last + 1
  local word = 'queued'
  if redis.call('EXISTS', P .. 'job:' .. id) == 1 then
    word = 'mine'
  elseif before and LIVE[before] and (overlap == 'skip' or (overlap == 'queue_one' and before ~= 'started')) then
    word = 'overlap'
  elseif taken then
    word = 'duplicate'
  elseif room < 1 then
    answer[1], next_slot, look_at = 'full', slot, string.format('%.0f', now + 2000)
    break
  else
    room = room - 1
    before, taken, last_job = 'queued', name ~= '', id
    plan[#plan + 1] = { id = id, first = first, last = last }
  end
  last_slot = slot
  answer[#answer + 1] = word
end

local push, fired, now_text = {}, #plan, string.format('%.0f', now)
for k, job in ipairs(plan) do
  redis.call('HSET', P .. 'job:' .. job.id, 'status', 'queued', 'q', now_text, unpack(ARGV, job.first, job.last))
  push[k] = job.id
end
if fired > 0 then
  redis.call('RPUSH', KEYS[4], unpack(push))
  for _, job in ipairs(plan) do
    local asked = {}
    for a = job.first, job.last, 2 do asked[ARGV[a]] = ARGV[a + 1] end
    place(KEYS[5]:sub(#N + 3), job.id, now, asked['or'], asked.tn)
  end
  redis.call('SADD', KEYS[6], KEYS[4])
  if name ~= '' then
    local value = mode .. ':' .. last_job
    if mode == 'w' then
      redis.call('SET', N .. 'dedup:' .. name, value, 'PX', tonumber(ARGV[13]))
    else
      redis.call('SET', N .. 'dedup:' .. name, value)
    end
  end
  redis.call('HSET', KEYS[1], 'job', last_job)
  redis.call('HINCRBY', KEYS[1], 'fired', fired)
end
if last_slot then redis.call('HSET', KEYS[1], 'last', last_slot) end
if #answer - 1 > fired then redis.call('HINCRBY', KEYS[1], 'skipped', #answer - 1 - fired) end
if ARGV[9] ~= '0' then redis.call('HINCRBY', KEYS[1], 'missed', ARGV[9]) end
if ARGV[14] ~= '' then redis.call('HSET', KEYS[1], 'data', ARGV[14]) end
redis.call('HSET', KEYS[3], ARGV[4], '')
if next_slot == '' then
  redis.call('HDEL', KEYS[1], 'next')
  redis.call('ZREM', KEYS[2], ARGV[4])
else
  redis.call('HSET', KEYS[1], 'next', next_slot)
  redis.call('ZADD', KEYS[2], look_at, ARGV[4])
end
return answer
