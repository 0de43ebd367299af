-- enqueue.lua: admit jobs to one queue, each unless it is here already, its dedup key is held, or the queue is full.
-- KEYS[1]  queue list        P:queue:<q>
-- KEYS[2]  scheduled zset    P:scheduled:<q>
-- KEYS[3]  queue state       jobq:q:<q>
-- KEYS[4]  set of queues     P:queues
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  1 = add the queue to the set of queues; plus 2 x the index in ARGV of what single jobs ask for beyond, if any
-- ARGV[5]  number of jobs   ARGV[6] number of sets of fields that jobs share
-- then per set: count of what follows, field, value, ...
-- then per job: number of its set, id, due ms (0 = now; < 0 = so many ms from now), dedup name or ''; with a name: mode
--          f|s|w, window ms, replace 0|1, id that data is signed for ('*' = none); count of what follows, field, value, ...
--          of the hash
-- at last, three per wish: the job's number, what: p place, as '<order>:<tenant>', each '' = none; q quota (a gate of
--          claim.lua's of the kinds r and b), value
-- Returns  {word, id, ...} two per job: queued | scheduled | mine | full | shed, id
--          over_quota, ms after which to try again
--          duplicate | replaced | rebind, holder's id
-- Keys built inside: P:job:<id>, jobq:dedup:<name>, and of a holder: its queue's list, scheduled, jobq:retrying;
--          for wishes: jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>, jobq:quota:<gate>.
--          of a queue with a most: P:deferred:<q>.
-- Order and turns: the job is in the list as ever, and has a place beside, which claim goes by.
-- rebind: the holder can be replaced, but data is signed for another id; sign it for the holder and send it again.
-- Idempotent: the job id is the token; a holder remembers in rp which ids replaced it last.
-- Full memory: the first write is a HSET, so all is refused and nothing written. Jobs without a dedup key are
--          written as they come, up to the first that has one; no read after that can fail.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
local exact = now
if not now then
  local t = redis.call('TIME')
  now, exact = t[1] * 1000 + math.floor(t[2] / 1000), t[1] * 1000 + t[2] / 1000
end
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

local state = redis.call('HMGET', KEYS[3], 'shed', 'max', 'max_set')

-- Most calls bring one job that is due and wants nothing beyond, to a queue without a bound: what is made below for all
-- others would take such a call half as long again.
if ARGV[5] == '1' and ARGV[4] == '0' and not (state[1] or state[2] or state[3]) then
  local head = 8 + tonumber(ARGV[7])
  local id = ARGV[head + 1]
  if ARGV[head + 2] == '0' and ARGV[head + 3] == '' then
    local key = P .. 'job:' .. id
    if redis.call('EXISTS', key) == 1 then return { 'mine', id } end
    local row = { key, 'status', 'queued', 'q', string.format('%.0f', now), unpack(ARGV, 8, head - 1) }
    local size = 5 + head - 8 - (head + 4)
    for a = head + 5, #ARGV do row[size + a] = ARGV[a] end
    redis.call('HSET', unpack(row))
    local entered = redis.pcall('RPUSH', KEYS[1], id)
    if type(entered) == 'table' then redis.call('UNLINK', key) end
    return type(entered) == 'table' and entered or { 'queued', id }
  end
end

local room, refusal = math.huge, 'full'
if state[1] and (tonumber(state[1]) or 0) > now then
  room, refusal = 0, 'shed'
elseif state[2] or state[3] then
  local most = most_of(state[2], state[3])
  if most then room = most - waiting_in(KEYS[3]:sub(#N + 3)) end
end

local WAITING = { queued = true, scheduled = true }
local LIVE = { queued = true, scheduled = true, started = true, deferred = true, created = true,
  ready_to_enqueue = true, rate_limited = true }
local now_text = string.format('%.0f', now)
local seen, taken, answers, plan, push, later, counted, places = {}, {}, {}, {}, {}, {}, {}, {}

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

-- Of each set the arguments of a HSET: key, status and q, what its jobs share; behind those the fields of one job, which
-- the next one overwrites.
local rows, sizes, pos = {}, {}, 7
for set = 1, tonumber(ARGV[6]) do
  local count = tonumber(ARGV[pos])
  rows[set], sizes[set] = { '', 'status', '', 'q', '', unpack(ARGV, pos + 1, pos + count) }, 5 + count
  pos = pos + count + 1
end

-- Writes a new job; its id goes into its container at the end, together with the others'.
local function admit(id, due, set, first, last, replaced_by)
  local row, size = rows[set], sizes[set]
  row[1] = P .. 'job:' .. id
  if due > 0 then
    row[3], row[5] = 'scheduled', string.format('%.0f', due)
    later[#later + 1], later[#later + 2] = string.format('%.3f', due / 1000), id
  else
    row[3], row[5] = 'queued', now_text
    push[#push + 1] = id
  end
  for a = first, last do row[size + 1 + a - first] = ARGV[a] end
  redis.call('HSET', unpack(row, 1, size + 1 + last - first))
  if replaced_by then redis.call('HSET', row[1], 'rp', replaced_by) end
end

-- The ids that have replaced a holder, the latest first: those of the last 8 find themselves, whoever came after.
local function remember(id, before)
  local ids = { id }
  for other in (before or ''):gmatch('[^ ]+') do
    if other ~= id and #ids < 8 then ids[#ids + 1] = other end
  end
  return table.concat(ids, ' ')
end

local function remembered(id, before)
  return before and (' ' .. before .. ' '):find(' ' .. id .. ' ', 1, true) ~= nil
end

-- The live holder of a dedup key: id, status, queue, ids that have replaced it, order, tenant; nil when the key refuses
-- nobody.
local function holder_of(name)
  -- A key of the wrong type refuses nobody: an error here would leave the jobs before it half written.
  local value = redis.pcall('GET', N .. 'dedup:' .. name)
  if type(value) ~= 'string' then return nil end
  local mode, id = value:match('^(%a):(.*)$')
  if not mode then return nil end
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'origin', 'rp', 'or', 'tn')
  local status = not row.err and row[1] or nil
  if mode ~= 'w' then
    if not status or not LIVE[status] or (mode == 's' and status == 'started') then return nil end
  end
  return id, status, row[2], row[3], row[4] or nil, row[5] or nil
end

-- promised: by name of the quota, what this call has let in and not written yet.
local wishes, quotas, promised, asked = math.floor(tonumber(ARGV[4]) / 2), nil, {}, {}
for a = wishes > 0 and wishes or #ARGV + 1, #ARGV, 3 do
  local i, value = tonumber(ARGV[a]), ARGV[a + 2]
  if ARGV[a + 1] == 'q' then
    quotas = quotas or {}
    quotas[i] = value
  else
    local order, tenant = value:match('^(%d*):(.*)$')
    asked[i] = { order = order ~= '' and order or nil, tenant = tenant ~= '' and tenant or nil }
  end
end

-- Looks at a quota: ms to wait when it is used up; or nil, and what counts the job once it is written. Nothing is trimmed
-- before: a first write that frees would let a job in while memory is full.
local function charge(id, gate)
  local kind, limit, window, burst, name, cost = gate:match('(%a),(%d+),(%d+),(%d+),([^,]+),?(%d*)')
  local key, waits = N .. 'quota:' .. name, nil
  limit, window, burst, cost = tonumber(limit), tonumber(window), tonumber(burst), tonumber(cost) or 1
  if kind == 'r' then
    local used = redis.pcall('ZCOUNT', key, '(' .. string.format('%.0f', now - window), '+inf')
    if type(used) == 'table' then return nil end
    if used + (promised[name] or 0) < limit then
      return nil, function()
        redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
        redis.call('ZADD', key, now, id)
        redis.call('PEXPIRE', key, window)
      end, name, 1
    end
    local oldest = redis.call('ZRANGE', key, -limit, -limit, 'WITHSCORES')
    return math.ceil((tonumber(oldest[2] or '') or now) + window - now)
  elseif kind == 'w' then
    local sum = redis.pcall('ZSCORE', key, '~sum')
    if type(sum) == 'table' then return nil end
    -- Scores of enqueues are moments, which are greater than any sum.
    local before = now - window
    local function gone()
      local costs = 0
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '(2000000000', before)) do
        costs = costs + tonumber(member:match(':(%d+)$') or '0')
      end
      return costs
    end
    local free = limit - (tonumber(sum or '0') - gone()) - (promised[name] or 0)
    local since = '(' .. string.format('%.0f', before)
    if free >= cost and redis.call('ZCOUNT', key, since, '+inf') < 10000 then
      return nil, function()
        redis.call('ZINCRBY', key, cost - gone(), '~sum')
        redis.call('ZREMRANGEBYSCORE', key, '(2000000000', before)
        redis.call('ZADD', key, now, id .. ':' .. cost)
        redis.call('PEXPIRE', key, window)
      end, name, cost
    end
    -- When enough has left the window, or, of many, a hundred enqueues.
    local row, at = redis.call('ZRANGEBYSCORE', key, since, '+inf', 'WITHSCORES', 'LIMIT', 0, 100), now
    for i = 1, #row, 2 do
      at = tonumber(row[i + 1])
      free = free + tonumber(row[i]:match(':(%d+)$') or '0')
      if free >= cost then break end
    end
    return math.ceil(at + window - now)
  end
  local step = window / (limit - burst)
  local before = redis.pcall('GET', key)
  local full_at = math.max(now, type(before) == 'string' and tonumber(before) or 0) + step * (cost + (promised[name] or 0))
  waits = full_at - now - burst * step
  if waits > 1e-6 then return math.ceil(waits) end
  return nil, function()
    redis.call('SET', key, string.format('%.6f', full_at), 'PX', math.ceil(full_at - now))
  end, name, cost
end

for i = 1, tonumber(ARGV[5]) do
  local set, id, due, name = tonumber(ARGV[pos]), ARGV[pos + 1], tonumber(ARGV[pos + 2]), ARGV[pos + 3]
  local mode, window, replace, bound
  if name ~= '' then
    mode, window, replace, bound = ARGV[pos + 4], tonumber(ARGV[pos + 5]), ARGV[pos + 6] == '1', ARGV[pos + 7]
    pos = pos + 4
  end
  local first = pos + 5
  local last = first + tonumber(ARGV[pos + 4]) - 1
  pos = last + 1
  if due < 0 then due = now - due end
  if due <= now then due = 0 end
  local word, answer, over = nil, id, nil
  if seen[id] or redis.call('EXISTS', P .. 'job:' .. id) == 1 then
    word = 'mine'
  elseif name ~= '' then
    local earlier = taken[name]
    local holder, status, origin, replaced_by, order, tenant
    if earlier then
      holder, status, replaced_by = earlier.id, 'queued', earlier.rp
    else
      holder, status, origin, replaced_by, order, tenant = holder_of(name)
    end
    if not holder then
      word = nil
    elseif not replace then
      word, answer = 'duplicate', holder
    elseif remembered(id, replaced_by) then
      word, answer = 'replaced', holder
    elseif WAITING[status] then
      answer = holder
      if bound ~= holder and bound ~= '*' then
        word = 'rebind'
      else
        word = 'replaced'
        over = { id = holder, status = status, origin = origin, order = order, tenant = tenant, earlier = earlier,
          rp = remember(id, replaced_by) }
      end
    elseif not LIVE[status] or status == 'deferred' then
      -- A window outlives its job, and a parked job is not ours to change: both still refuse an equal one.
      word, answer = 'duplicate', holder
    end
  end
  if not word then
    local waits, count, counted_at, cost = nil, nil, nil, nil
    if quotas and quotas[i] and room >= 1 then waits, count, counted_at, cost = charge(id, quotas[i]) end
    if room < 1 then
      word = refusal
    elseif waits then
      word, answer = 'over_quota', string.format('%.0f', waits)
    else
      room = room - 1
      word = due > 0 and 'scheduled' or 'queued'
      if name == '' and #plan == 0 then
        admit(id, due, set, first, last)
        if count then count() end
        if asked[i] and due == 0 then places[#places + 1] = { id = id, asked = asked[i] } end
      else
        seen[id], counted[id] = true, count
        if count then promised[counted_at] = (promised[counted_at] or 0) + cost end
      end
    end
  end
  -- Behind a job with a dedup key a plain one waits too, or they would change places.
  if (name ~= '' or #plan > 0) and (word == 'queued' or word == 'scheduled' or over) then
    local step = { id = answer, new = id, due = due, name = name, mode = mode, window = window,
      set = set, first = first, last = last, over = over, rp = over and over.rp, asked = asked[i] }
    if over and over.earlier then
      -- The holder is in this same call and not written yet: this one takes its place.
      step.over = nil
      for k, s in ipairs(plan) do
        if s == over.earlier then
          step.over = s.over
          plan[k] = step
        end
      end
    else
      plan[#plan + 1] = step
    end
    if name ~= '' then taken[name] = step end
  end
  answers[2 * i - 1], answers[2 * i] = word, answer
end

for _, step in ipairs(plan) do
  local key, due, over = P .. 'job:' .. step.id, step.due, step.over
  if over then
    -- Only what the new call brings: the payload, its options, its tags; the holder keeps its id and its past.
    local status, at = due > 0 and 'scheduled' or 'queued', due > 0 and string.format('%.0f', due) or now_text
    local set = { 'status', status, 'q', at, 'rp', step.rp }
    local drop = { 'attempts', 'o', 'jk', 'lost', 'crashes', 'lm', 'gt', 'li', 'sz', 'or', 'tn' }
    local function bring(from, first, last)
      for f = first, last, 2 do
        local field = from[f]
        if field == 'data' or field == 'timeout' or field == 'o' or field == 'jk' or field == 'dk'
          or field == 'lm' or field == 'or' or field == 'tn' then
          set[#set + 1], set[#set + 2] = field, from[f + 1]
        end
      end
    end
    bring(rows[step.set], 6, sizes[step.set])
    bring(ARGV, step.first, step.last)
    redis.call('HSET', key, 'rp', step.rp)
    redis.call('HDEL', key, unpack(drop))
    redis.call('HSET', key, unpack(set))
    local q = over.origin or ''
    if over.status == 'queued' then displace(q, step.id, over.order, over.tenant) end
    if over.status == 'scheduled' then
      redis.call('ZREM', P .. 'scheduled:' .. q, step.id)
      redis.call('ZREM', N .. 'retrying:' .. q, step.id)
    elseif due > 0 and redis.call('LLEN', P .. 'queue:' .. q) <= 10000 then
      -- In a longer list the id stays: searching it would hold up everybody, and claim drops what is not queued.
      redis.call('LREM', P .. 'queue:' .. q, 0, step.id)
    end
    if due > 0 then
      redis.call('ZADD', P .. 'scheduled:' .. q, string.format('%.3f', due / 1000), step.id)
    elseif over.status == 'scheduled' then
      redis.call('RPUSH', P .. 'queue:' .. q, step.id)
    end
    if due == 0 and step.asked then places[#places + 1] = { id = step.id, asked = step.asked, queue = q } end
  else
    admit(step.id, due, step.set, step.first, step.last, step.rp)
    if counted[step.new] then counted[step.new]() end
    if due == 0 and step.asked then places[#places + 1] = { id = step.id, asked = step.asked } end
  end
  if step.name ~= '' then
    local name, value = N .. 'dedup:' .. step.name, step.mode .. ':' .. step.id
    if step.mode == 'w' then
      redis.call('SET', name, value, 'PX', step.window)
    else
      redis.call('SET', name, value)
    end
  end
end
-- A list or a registry of the wrong type takes nobody: then none of this call's new jobs is there.
local function refuse(fault)
  for _, id in ipairs(push) do redis.call('UNLINK', P .. 'job:' .. id) end
  for i = 2, #later, 2 do redis.call('UNLINK', P .. 'job:' .. later[i]) end
  for _, step in ipairs(plan) do
    if step.name ~= '' and not step.over then redis.call('DEL', N .. 'dedup:' .. step.name) end
  end
  return fault
end
local entered = #later > 0 and redis.pcall('ZADD', KEYS[2], unpack(later))
if type(entered) == 'table' then return refuse(entered) end
entered = #push > 0 and redis.pcall('RPUSH', KEYS[1], unpack(push))
if type(entered) == 'table' then return refuse(entered) end
for _, job in ipairs(places) do
  place(job.queue or KEYS[3]:sub(#N + 3), job.id, exact, job.asked.order, job.asked.tenant)
end
if tonumber(ARGV[4]) % 2 == 1 and (#plan > 0 or #push > 0 or #later > 0) then redis.pcall('SADD', KEYS[4], KEYS[1]) end
return answers
