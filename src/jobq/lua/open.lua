-- open.lua: queue again what waits at gates that may be open now, as many jobs as each lets in.
-- KEYS[1]  gates        jobq:gates
-- KEYS[2]  leases       jobq:leases
-- KEYS[3]  quarantine   jobq:quarantine
-- KEYS[4]  limits set by operators   jobq:limits
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] most gates   ARGV[5] most jobs
-- Returns  {jobs queued, gates looked at}
-- Keys built inside: P:job:<id>, P:deferred:<q>, P:queue:<q>, P:queues, jobq:gate:<gate>, jobq:blocked:<q>,
--          jobq:rate:<gate>, jobq:held:<gate>, jobq:closed:<gate>; of jobs with an order or a tenant: jobq:q:<q>, jobq:order:<q>,
--          jobq:turns:<q>, jobq:fair:<q>, jobq:turn:<q>:<tenant>.
-- A gate, and what operators have set, is as claim.lua describes it; only claim passes it, so one job too many here costs a claim, not a limit.
-- Idempotent: a job that is queued waits at no gate.
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
local most, queued, front, order = tonumber(ARGV[5]), 0, {}, {}
redis.call('ZREM', KEYS[3], '')

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

-- What operators have set for a task, or for one key of it; false when nothing holds. What makes no sense sets nothing.
local set, said = nil, {}
local HEADS = { r = '^[rbso],', w = '^[wbso],', c = '^[cs],' }
local function said_of(name)
  if said[name] ~= nil then return said[name] end
  local found, at = false, set:find('\n' .. name .. ' ', 1, true)
  local ends, r, w, c = nil, nil, nil, nil
  if at then ends, r, w, c = set:match('^(%d+) (%S+) (%S+) (%S+)', at + #name + 2) end
  local till = ends and #ends < 16 and tonumber(ends)
  if till and (till == 0 or till > now) then
    found = { ends = till > 0 and till or math.huge }
    for slot, head in pairs({ r = r, w = w, c = c }) do
      local kind, limit, window, burst = head:match('^(%a),(%d+),(%d+),(%d+)$')
      if kind and head:find(HEADS[slot]) and #limit < 13 and #window < 13 and #burst < 13 then
        local most, ms, some = tonumber(limit), tonumber(window), tonumber(burst)
        local free = kind == 's' or kind == 'o'
        if free or (most > 0 and (kind == 'c' or ms > 0) and (kind ~= 'b' or (some > 0 and some < most))) then
          found[slot] = { head = head, free = free, lets = kind == 'o', most = kind == 'b' and some or most }
        end
      end
    end
  end
  said[name] = found
  return found
end

-- The gates of a job: what is set in place of what it declares. A limit that it shares with other tasks stays as it is,
-- and what is set comes on top. Second, when the first of what is set ends; nil: nothing is.
local function in_force(lm, description)
  local task = (description or ''):match('^%s*([^%s(]*)')
  if task == '' then return lm end
  local whole, single = said_of(task), said[task .. ':']
  if single == nil then
    single = set:find('\n' .. task .. ':', 1, true) or false
    said[task .. ':'] = single
  end
  if not whole and not single then return lm end
  local ends, out, has, keys = nil, {}, {}, {}
  local function put(found, slot, name, cost)
    ends = math.min(ends or found.ends, found.ends)
    out[#out + 1] = found[slot].head .. ',' .. name .. cost
  end
  for kind, limit, window, burst, name, cost in (lm or ''):gmatch('(%a),(%d+),(%d+),(%d+),([^;,]+),?(%d*)') do
    local slot, whose, found = name:match('^([rwc]):'), name:sub(3), nil
    local keyed = whose:sub(1, #task + 1) == task .. ':'
    if slot and (keyed or whose == task) then
      local counts = slot == 'w' and 'r' or slot
      has[counts] = true
      if keyed then
        if not has[whose] then
          has[whose], keys[#keys + 1] = {}, whose
        end
        has[whose][counts] = true
        found = single and said_of(whose)
      end
      if not (found and found[slot]) then found = whole end
    end
    local part = found and found[slot]
    if part then
      -- What costs more than there ever is goes alone.
      local its = cost ~= '' and not part.free and math.max(1, math.min(tonumber(cost), part.most))
      put(found, slot, name, its and string.format(',%.0f', its) or '')
    else
      out[#out + 1] = table.concat({ kind, limit, window, burst, name, cost ~= '' and cost or nil }, ',')
    end
  end
  local function more(found, slot, name)
    if found and found[slot] and not found[slot].lets then put(found, slot, slot .. ':' .. name, '') end
  end
  for _, slot in ipairs({ 'r', 'c' }) do
    if not has[slot] then more(whole, slot, task) end
    for _, whose in ipairs(keys) do
      if single and not has[whose][slot] then more(said_of(whose), slot, whose) end
    end
  end
  if not ends then return lm end
  return table.concat(out, ';'), ends
end

-- Starts that lie ahead are of a clock that was set back, and would count for so much longer: they count from now. So
-- they count for a window at the longest, and no shorter than they would have.
local function count_from_now(key, span)
  local ahead = '(' .. string.format('%.0f', now)
  redis.call('ZREM', N .. 'gates', '')  -- of nobody: it may be the first write while memory is full
  while true do
    local members, row = redis.call('ZRANGEBYSCORE', key, ahead, '+inf', 'LIMIT', 0, 1000), {}
    if #members == 0 then break end
    for i, member in ipairs(members) do row[2 * i - 1], row[2 * i] = now, member end
    redis.call('ZADD', key, 'XX', unpack(row))
  end
  redis.call('PEXPIRE', key, math.ceil(span) + 1000)
end
local function ahead(key)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  return (tonumber(last[2] or '') or 0) > now
end

-- How much a gate lets in now; and what says when it lets in so much more, after so much has been let in now.
local function room_of(kind, limit, window, burst, name, closed, cost)
  if kind == 'none' then return most, function() return now end end
  local key = N .. (kind == 'c' and 'held:' or 'rate:') .. name
  closed = tonumber((closed or ''):match('^%d+') or '0')
  if closed > now then return 0, function() return closed end end
  if kind == 'o' then return most, function() return now end end
  if kind == 's' then return 0, function() return now + 2000 end end
  if kind == 'c' then
    local held = redis.call('ZCARD', key)
    if held >= limit then
      for _, score in ipairs(redis.call('ZMSCORE', KEYS[2], unpack(redis.call('ZRANGE', key, 0, 999)))) do
        if not score then held = held - 1 end
      end
    end
    return limit - held, function() return now + 2000 end
  end
  local span = window + math.min(500, window / 20)
  if kind == 'r' then
    -- What a gate of another kind has counted under this name says nothing.
    if type(redis.pcall('ZREMRANGEBYSCORE', key, '-inf', now - span)) == 'table' then redis.call('DEL', key) end
    local used = redis.call('ZCARD', key)
    if limit - used < 1 and ahead(key) then count_from_now(key, span) end
    return limit - used, function(let)
      local rank = math.max(0, used + let - limit)
      local oldest = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')
      return math.ceil((tonumber(oldest[2] or '') or now) + span)
    end
  elseif kind == 'w' then
    -- Claim has the sum of what it has not trimmed yet, too.
    local sum = redis.pcall('ZSCORE', key, '~sum')
    if type(sum) == 'table' then return limit, function() return now + 2000 end end
    local used, since = tonumber(sum or '0'), '(' .. string.format('%.17g', now - span)
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '(2000000000', now - span)) do
      used = used - tonumber(member:match(':(%d+)$') or '0')
    end
    if limit - used < (cost or 1) and ahead(key) then count_from_now(key, span) end
    local most_starts = redis.call('ZCOUNT', key, since, '+inf') >= 10000
    return most_starts and 0 or limit - used, function(let, wanted)
      local free, at = limit - used - let, now + span
      local row = redis.call('ZRANGEBYSCORE', key, since, '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
      for i = 1, #row, 2 do
        at = tonumber(row[i + 1]) + span
        free = free + tonumber(row[i]:match(':(%d+)$') or '0')
        if free >= wanted then break end
      end
      return math.ceil(at)
    end
  end
  local step = span / (limit - burst)
  local full_at = redis.pcall('GET', key)
  full_at = math.max(now, type(full_at) ~= 'table' and tonumber(full_at or '0') or 0)
  return math.floor(burst - (full_at - now) / step + 1e-6), function(let, wanted)
    return math.ceil(full_at + (let + wanted - burst) * step)
  end
end

-- Whoever was taken away by one of rq's tools is blocked no more, wherever that was.
local function unblock(id)
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'pb')
  if not row.err and row[1] == 'deferred' and row[2] and row[2]:sub(1, 6) == '~gate:' then return end
  for _, key in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
    redis.call('ZREM', N .. 'blocked:' .. key:sub(#P + 7), id)
  end
end

-- What a waiting job has to go by at its gate, and until when that holds at the longest; nil when it does not wait at this one.
local function spec_of(id, name)
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'pb', 'lm', 'description')
  if row.err then
    redis.call('ZADD', KEYS[3], now, id)
  elseif row[1] == 'deferred' and row[2] == '~gate:' .. name then
    local its, ends = row[3], nil
    if set then its, ends = in_force(row[3], row[4]) end
    for kind, limit, window, burst, gate, cost in (its or ''):gmatch('(%a),(%d+),(%d+),(%d+),([^;,]+),?(%d*)') do
      if gate == name and #limit < 13 and #window < 13 and #burst < 13 and #cost < 13 then
        local most, ms, some = tonumber(limit), tonumber(window), tonumber(burst)
        if ends and (kind == 's' or kind == 'o') then return kind, most, ms, some, nil, ends end
        if most > 0 and (kind == 'c' or ms > 0) and (kind ~= 'b' or (some > 0 and some < most)) then
          -- What costs more than there ever is goes alone.
          cost = cost ~= '' and math.max(1, math.min(tonumber(cost), kind == 'b' and some or most)) or nil
          return kind, most, ms, some, cost, ends
        end
      end
    end
    -- It says nothing of this gate any more, or nothing that makes sense: that limits nothing.
    return 'none', 1, 1, 0
  end
end

local function queue(id, name, weighs)
  local key = P .. 'job:' .. id
  local row = redis.pcall('HMGET', key, 'status', 'pb', 'origin', 'q', 'or', 'tn')
  if row.err then
    redis.call('ZADD', KEYS[3], now, id)
  elseif row[1] == 'deferred' and row[2] == '~gate:' .. name and row[3] then
    redis.call('ZREM', P .. 'deferred:' .. row[3], id)
    redis.call('ZREM', N .. 'blocked:' .. row[3], id)
    redis.call('HDEL', key, 'park', 'pb')
    -- Claim lets nobody past whoever waits at a gate where jobs weigh, but for these.
    redis.call('HSET', key, 'status', 'queued', 'li', '1', unpack(weighs and { 'gt', name } or {}))
    if not front[row[3]] then
      front[row[3]] = {}
      order[#order + 1] = row[3]
    end
    local since = tonumber((row[4] or ''):match('^%d+') or '') or now
    table.insert(front[row[3]], { id = id, since = since, place = queued })
    place(row[3], id, since, row[5], row[6])
    queued = queued + 1
  else
    unblock(id)
  end
end

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[4]))
for _, name in ipairs(due) do
  local waiting = N .. 'gate:' .. name
  local first = redis.call('ZRANGE', waiting, 0, 0)[1]
  local kind, limit, window, burst, cost, ends, closed = nil, nil, nil, nil, nil, nil, nil
  if first then
    local texts = redis.call('MGET', N .. 'closed:' .. name, KEYS[4])
    closed, set = texts[1], texts[2]
    kind, limit, window, burst, cost, ends = spec_of(first, name)
  end
  if not first then
    redis.call('ZREM', KEYS[1], name)
  elseif not kind then
    redis.call('ZREM', waiting, first)
    unblock(first)
  else
    local room, again = room_of(kind, limit, window, burst, name, closed, cost)
    local take = math.min(room, most - queued)
    local ids, left, wanted = {}, room, nil
    if take > 0 then ids = redis.call('ZRANGE', waiting, 0, take - 1) end
    if cost then
      -- Each takes what it costs, in the order in which they wait: the first that has to go on waiting stops the others.
      local several = ids
      ids = {}
      if take < 1 then wanted = cost end
      for _, id in ipairs(several) do
        local its = select(5, spec_of(id, name)) or 0
        if its > left then
          wanted = its
          break
        end
        ids[#ids + 1], left = id, left - its
      end
    elseif kind == 'none' then
      -- As many as nothing limits here.
      for i = 2, #ids do
        if spec_of(ids[i], name) ~= 'none' then
          ids = { unpack(ids, 1, i - 1) }
          break
        end
      end
    end
    if #ids > 0 then
      redis.call('ZREM', waiting, unpack(ids))
      for _, id in ipairs(ids) do queue(id, name, cost) end
    end
    if redis.call('EXISTS', waiting) == 0 then
      redis.call('ZREM', KEYS[1], name)
    elseif wanted then
      redis.call('ZADD', KEYS[1], math.min(again(room - left, wanted), ends or math.huge), name)
    elseif take >= room then
      redis.call('ZADD', KEYS[1], math.min(again(math.max(0, room), 1), ends or math.huge), name)
    end
  end
  if queued >= most then break end
end
-- In front, for they have waited longest: in the order of that, and behind whoever has waited longer still, such as one who
-- was let in before and is not claimed yet. As many as a hundred are asked, up to the first who came later. Of equals, who
-- was let in goes before who was not.
for _, name in ipairs(order) do
  local key, mine, row, asked, m = P .. 'queue:' .. name, front[name], {}, 0, 1
  table.sort(mine, function(a, b)
    if a.since == b.since then return a.place < b.place end
    return a.since < b.since
  end)
  for _, other in ipairs(redis.call('LRANGE', key, 0, 99)) do
    local its = redis.pcall('HMGET', P .. 'job:' .. other, 'q', 'li')
    local since = tonumber((its[1] or ''):match('^%d+') or '') or math.huge
    if not its[2] then since = since + 0.5 end
    if since > mine[#mine].since then break end
    while mine[m].since < since do
      row[#row + 1], m = mine[m].id, m + 1
    end
    row[#row + 1], asked = other, asked + 1
  end
  while mine[m] do
    row[#row + 1], m = mine[m].id, m + 1
  end
  for i = 1, #row / 2 do
    row[i], row[#row + 1 - i] = row[#row + 1 - i], row[i]
  end
  if asked > 0 then redis.call('LTRIM', key, asked, -1) end
  redis.call('LPUSH', key, unpack(row))
end
return { queued, #due }
