-- claim.lua: take up to n waiting jobs of one queue under a lease, and return their payloads.
-- KEYS[1]  queue list        P:queue:<q>
-- KEYS[2]  started registry  P:wip:<q>
-- KEYS[3]  leases            jobq:leases
-- KEYS[4]  last claim        jobq:claim:<exec>
-- KEYS[5]  queue state       jobq:q:<q>
-- KEYS[6]  rq suspend flag   P:suspended
-- KEYS[7]  parked buckets    jobq:parked:<q>
-- KEYS[8]  quarantine        jobq:quarantine
-- KEYS[9]  deferred zset     P:deferred:<q>
-- KEYS[10] limits set by operators   jobq:limits
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  exec   ARGV[5] claim number   ARGV[6] n   ARGV[7] lease ms   ARGV[8] worker name   ARGV[9] started_at, ISO
-- ARGV[10] queue name   ARGV[11] suspects: run | park | only   ARGV[12+] names of parked buckets that the caller can run
-- Returns  {word, now, until, flags, more 0|1, job, ...}; word: ok | stale | paused | suspended | limited
--          flags: 1 the queue has parked jobs, 2 it has limits of its own, 4 suspects wait whom nobody may know of
--          job: {id, data, q, attempts, crashes, lost, o, timeout, description, jk, rq fields or gates or nil, 1 for rq
--          fields and gates}
-- A gate is written 'kind,limit,window ms,burst,name' or 'kind,limit,window ms,burst,name,cost': r counts the starts in
-- any window, w their costs, b spaces out what is beyond a burst so that no window holds more than limit, c counts what
-- runs at once; several are joined by ';'. Of w, the members are '<id>:<token>:<cost>', and the score of '~sum' is what
-- they cost together. A queue's are in its state, a job's in lm. A job that finds one closed waits at it, parked, until open.lua lets it back. All
-- gates of a job are looked at before one is passed.
-- What operators have set for tasks is text of lines '<task>[:<digest of a key>] <until, ms; 0 = for good> <r> <w> <c> <more>',
-- each of the three 'kind,limit,window ms,burst' in place of what a rate, a rate with costs or a concurrency declares, or
-- '-'; there kind may be s, nobody starts, or of a rate o, everybody whom no RateLimited stops. A run that this concerns has the
-- gates that it has passed in lo, and who frees its places goes by that.
-- A suspect is a job whose process died under it, or that was lost three times: it is to run where its end takes
-- nobody along. Who cannot offer that parks it in the bucket ~suspect; who says only takes from there, not from the list.
-- Keys built inside: P:job:<id>, jobq:dedup:<name>, jobq:parked:<q>:<bucket>; of a job settled before also
--          P:job:<id>:dependents, jobq:attempts:<id>; for jobs and queues with limits:
--          jobq:rate:<gate>, jobq:held:<gate>, jobq:closed:<gate>, jobq:gate:<gate>, jobq:gates, jobq:blocked:<q>;
--          where jobs have an order or a tenant: jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>,
--          jobq:turn:<q>:<tenant>; of an id that belongs to another queue: P:queue:<its q>.
-- What is popped is not lost, whatever its hash and the keys beside it hold: a number that is none counts as absent, a
-- gate that makes no sense limits nothing, a key of the wrong type counts as empty, and what would go there is left
-- out (see doctor). Without leases nothing is taken.
-- Idempotent: the same number yields the same jobs again, as far as their leases stand; a lower one yields none.
-- Full memory: the first write is LPOP or ZREM, which free; after it Redis lets the rest of a script pass.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local number, want, token = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[4] .. '.' .. ARGV[5]
local flags = redis.call('MGET', KEYS[6], KEYS[4], KEYS[10])
local lease_end = now + tonumber(ARGV[7])
local suspects, apart = ARGV[11], N .. 'parked:' .. ARGV[10] .. ':~suspect'
local out = { 'ok', now, lease_end, 0, 0 }

local RQ = { 'retries_left', 'result_ttl', 'failure_ttl', 'ttl', 'success_callback_name', 'failure_callback_name',
  'stopped_callback_name', 'webhooks', 'repeats_left', 'rate_limit_key', 'enqueued_at' }

-- An id whose job belongs to another queue: a move has left a copy behind, or a foreign hand put it here.
local function redirect(id, origin)
  local list = P .. 'queue:' .. origin
  redis.call('ZREM', KEYS[8], '')
  if not redis.pcall('LPOS', list, id, 'RANK', -1, 'MAXLEN', 10000) then redis.pcall('RPUSH', list, id) end
end

-- Reads a job: the row to return with the id in the place of the status, and status, st, ttl, dk, lm, park.
local function read(id)
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'data', 'q', 'attempts', 'crashes', 'lost', 'o',
    'timeout', 'description', 'jk', 'st', 'ttl', 'dk', 'lm', 'park', 'origin', 'gt', 'lo')
  if row.err then return nil, 'broken' end
  local status, settled, ttl, dk, lm, park, origin = row[1], row[11], row[12], row[13], row[14], row[15], row[16]
  if not status and not row[2] then return nil, 'gone' end
  -- An id goes into members and records whose parts are told apart by colons, and through the worker as text.
  if not status or not row[2] or #id > 180 or id:find('[^ -9;-~]') then return nil, 'broken' end
  if status == 'queued' and origin and origin ~= ARGV[10] then return redirect(id, origin) end
  if row[3] and (#row[3] > 15 or not row[3]:find('^%d+$')) then row[3] = string.format('%.0f', now) end
  row[1] = id
  row.gt, row.lo = row[17], row[18]
  for i = 18, 11, -1 do row[i] = nil end
  -- Only jobs that plain rq made lack q.
  if lm then
    row[11] = lm
  elseif not row[3] then
    row[11] = redis.call('HMGET', P .. 'job:' .. id, unpack(RQ))
  end
  return row, status, settled, ttl, dk, lm, park
end

-- Tells the caller that a run has passed gates that its job does not declare.
local function as_passed(row)
  if type(row[11]) == 'table' then row[12] = '1' else row[11] = row.lo end
end

if flags[2] then
  local last, ends, ids = flags[2]:match('^(%d+):(%d+):(.*)$')
  last = tonumber(last)
  if last and last > number then
    return { 'stale', now, 0, 0, 0 }
  end
  if last == number then
    out[3] = tonumber(ends)
    for id in ids:gmatch('[^:]+') do
      if redis.call('ZSCORE', KEYS[3], id .. ':' .. token) then
        local row, status = read(id)
        if row and status == 'started' then
          if row.lo then as_passed(row) end
          out[#out + 1] = row
        end
      end
    end
    if suspects == 'park' and redis.call('EXISTS', apart) == 1 then out[4] = 4 end
    return out
  end
end
if flags[1] then
  return { 'suspended', now, 0, 0, 0 }
end
local state = redis.call('HMGET', KEYS[5], 'paused', 'until', 'parked', 'limit', 'limit_set', 'closed', 'order', 'fair',
  'turn', 'rest')
if state[1] == '1' then
  local ends = tonumber(state[2] or '') or 0
  if ends == 0 or ends > now then
    return { 'paused', now, ends, 0, 0 }
  end
end

if want < 1 then return out end

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
set = flags[3]

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

local GATE = '(%a),(%d+),(%d+),(%d+),([^;,]+),?(%d*)'
-- Scores of starts: moments, which are greater than any sum.
local SINCE = '(2000000000'
local gates, of_queue = {}, {}

-- One limit at its gate, nil if it makes no sense. What a gate has counted is read once a call, and is one for all jobs
-- that name it, whatever limit each brings.
local function look(kind, limit, window, burst, name, cost)
  if #limit > 12 or #window > 12 or #burst > 12 or #cost > 12 then return nil end
  limit, window, burst = tonumber(limit), tonumber(window), tonumber(burst)
  local counts = kind ~= 's' and kind ~= 'o'
  if counts and (limit < 1 or (kind ~= 'c' and window < 1) or (kind == 'b' and (burst < 1 or burst >= limit))) then
    return nil
  end
  local gate = gates[name]
  if not gate then
    -- A start follows its claim: so much longer, that no window holds more of them by the handlers' clocks either.
    gate = { kind = kind, name = name, passed = {}, span = window + math.min(500, window / 20), used = 0, starts = 0 }
    gates[name] = gate
    gate.closed = tonumber((redis.call('GET', N .. 'closed:' .. name) or ''):match('^%d+') or '0')
    local key = N .. 'rate:' .. name
    if kind == 'c' then
      gate.used = redis.call('ZCARD', N .. 'held:' .. name)
    elseif kind == 'r' then
      -- What a gate of another kind has counted under this name says nothing.
      local trimmed = redis.pcall('ZREMRANGEBYSCORE', key, '-inf', now - gate.span)
      if type(trimmed) == 'table' then redis.call('DEL', key) end
      gate.used = redis.call('ZCARD', key)
    elseif kind == 'w' then
      local gone = 0
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, SINCE, now - gate.span)) do
        gone = gone + tonumber(member:match(':(%d+)$') or '0')
      end
      if gone > 0 then
        redis.call('ZREMRANGEBYSCORE', key, SINCE, now - gate.span)
        redis.call('ZINCRBY', key, -gone, '~sum')
      end
      gate.used = tonumber(redis.call('ZSCORE', key, '~sum') or '0')
      gate.starts = redis.call('ZCARD', key) - 1
    elseif counts then
      local full_at = redis.pcall('GET', key)
      if type(full_at) == 'table' then
        redis.call('DEL', key)
        full_at = false
      end
      gate.full_at = math.max(now, tonumber(full_at or '') or 0)
    end
  end
  local asked = { gate = gate, limit = limit, burst = burst, step = gate.span / (limit - burst), cost = 1 }
  if cost ~= '' then
    -- What costs more than there ever is goes alone.
    asked.cost, asked.weighs = math.max(1, math.min(tonumber(cost), kind == 'b' and burst or limit)), true
    -- Whoever takes a lot would wait for ever if those who take little went past.
    if gate.head == nil then
      gate.head = tonumber(redis.call('ZRANGE', N .. 'gate:' .. name, 0, 0, 'WITHSCORES')[2] or '') or false
    end
  end
  return asked
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

-- How much may start at a gate now.
local function room_at(asked)
  local gate = asked.gate
  if gate.closed > now or gate.kind == 's' then return 0 end
  if gate.kind == 'o' then return 1 end
  if gate.kind == 'b' then return math.floor(asked.burst - (gate.full_at - now) / asked.step + 1e-6) end
  if gate.kind == 'w' and gate.starts >= 10000 then return 0 end
  if gate.kind ~= 'c' and asked.limit - gate.used < asked.cost and not gate.cleared then
    gate.cleared = true
    local key = N .. 'rate:' .. gate.name
    if ahead(key) then count_from_now(key, gate.span) end
  end
  if gate.kind == 'c' and gate.used >= asked.limit and not gate.cleared then
    -- Whoever has no lease any more does not hold it: what a crash leaves behind goes here at the latest.
    gate.cleared = true
    local members, gone = redis.call('ZRANGE', N .. 'held:' .. gate.name, 0, 999), {}
    local scores = #members > 0 and redis.call('ZMSCORE', KEYS[3], unpack(members)) or {}
    for i, member in ipairs(members) do
      if not scores[i] then gone[#gone + 1] = member end
    end
    if #gone > 0 then redis.call('ZREM', N .. 'held:' .. gate.name, unpack(gone)) end
    gate.used = gate.used - #gone
  end
  return asked.limit - gate.used
end

local function pass(asked, member)
  local gate, k = asked.gate, #asked.gate.passed
  if gate.kind == 'o' then return end
  gate.used, gate.starts = gate.used + asked.cost, gate.starts + 1
  if gate.kind == 'b' then gate.full_at = gate.full_at + asked.cost * asked.step end
  gate.passed[k + 1], gate.passed[k + 2] = now, gate.kind == 'w' and member .. ':' .. asked.cost or member
end

-- When a gate without room is worth another look, ms.
local function opens(asked)
  local gate, at = asked.gate, now
  if gate.kind == 'c' or gate.kind == 's' then
    -- Who settles, or lifts what was set, says so at once; this is for those who cannot.
    at = now + 2000
  elseif gate.kind == 'o' then
    at = gate.closed
  elseif gate.kind == 'r' then
    local rank = math.max(0, gate.used - asked.limit)
    local oldest = gate.used > 0 and redis.call('ZRANGE', N .. 'rate:' .. gate.name, rank, rank, 'WITHSCORES')
    at = (oldest and tonumber(oldest[2]) or now) + gate.span
  elseif gate.kind == 'w' then
    -- When enough has left the window, or, of many, a hundred starts.
    local free, row = asked.limit - gate.used, redis.call('ZRANGE', N .. 'rate:' .. gate.name, 1, 100, 'WITHSCORES')
    at = now + gate.span
    for i = 1, #row, 2 do
      at = tonumber(row[i + 1]) + gate.span
      free = free + tonumber(row[i]:match(':(%d+)$') or '0')
      if free >= asked.cost then break end
    end
  else
    at = gate.full_at + (asked.cost - asked.burst) * asked.step
  end
  -- What holds when something that was set has ended may let in sooner.
  return math.ceil(math.min(math.max(at, gate.closed), asked.ends or math.huge))
end

-- Whether others wait at a gate where jobs weigh, and this one was not let in from among them.
local function behind(asked, row)
  local gate = asked.gate
  return asked.weighs and gate.head and row.gt ~= gate.name and (tonumber(row[3] or '') or now) >= gate.head
end

-- The first limit that stops a job; or nil, and it has passed them all. What was set ends then; nil: nothing was.
local function stopped_by(id, lm, row, ends)
  local open = {}
  for kind, limit, window, burst, name, cost in lm:gmatch(GATE) do
    local asked = (ends or (kind ~= 's' and kind ~= 'o')) and look(kind, limit, window, burst, name, cost)
    if asked and (room_at(asked) < asked.cost or behind(asked, row)) then
      asked.ends = ends
      return asked
    end
    if asked then open[#open + 1] = asked end
  end
  for _, asked in ipairs(open) do pass(asked, id .. ':' .. token) end
end

if state[6] and (tonumber(state[6]) or 0) <= now then
  redis.call('HDEL', KEYS[5], 'closed', 'closed_by')
  state[6] = nil
end
if state[4] or state[5] or state[6] then
  out[4] = 2
  local ends, text = (state[5] or ''):match('^(%d+)|(.*)$')
  if not ends or (ends ~= '0' and tonumber(ends) <= now) then text = state[4] or '' end
  local open_at = tonumber(state[6] or '') or 0
  if open_at > now then want = 0 end
  for kind, limit, window, burst, name, cost in text:gmatch(GATE) do
    local room, at = want, nil
    if kind == 'c' and tonumber(limit) > 0 then
      -- What stock workers run counts, too. Nobody tells when one of another worker's ends.
      room, at = tonumber(limit) - redis.call('ZCARD', KEYS[2]), now + 250
    else
      local asked = look(kind, limit, window, burst, name, cost)
      of_queue[#of_queue + 1] = asked
      if asked then room = room_at(asked) end
      if room < 1 then at = opens(asked) end
    end
    if room < 1 then open_at = math.max(open_at, at) end
    want = math.min(want, room)
  end
  if want < 1 then
    -- An empty queue is waited for as ever.
    if redis.call('EXISTS', suspects == 'only' and apart or KEYS[1]) == 0 then return out end
    return { 'limited', now, open_at, 2, 0 }
  end
end

local taken, leases, wip, deferred, blocked, parked = {}, {}, {}, {}, {}, {}
local function add(list, score, id)
  local k = #list
  list[k + 1], list[k + 2] = score, id
end

-- Lets a job wait at a gate, in the order in which such jobs became queued.
local function block(id, row, asked)
  local gate = asked.gate
  local counts = gate.kind == 'c' or ((gate.kind == 's' or gate.kind == 'o') and gate.name:find('^c:'))
  redis.call('HSET', P .. 'job:' .. id, 'status', 'deferred', 'park', counts and 'concurrency' or 'rate', 'pb',
    '~gate:' .. gate.name)
  local key, score = N .. 'gate:' .. gate.name, tonumber(row[3] or now)
  if not gate.last then
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
    gate.last = tonumber(last[2] or '') or 0
  end
  -- Who stands before those of this call may be let in sooner: it may cost less, or bring a higher limit.
  if score < (gate.least or math.huge) then
    gate.least = score
    redis.call('ZADD', N .. 'gates', 'LT', opens(asked), gate.name)
  end
  -- Of one millisecond there are many.
  if score <= gate.last and gate.last - score < 1 then score = gate.last + 0.001 end
  gate.last = math.max(gate.last, score)
  if asked.weighs then gate.head = math.min(gate.head or score, score) end
  redis.call('ZADD', key, string.format('%.3f', score), id)
  add(blocked, now, id)
  add(deferred, math.floor(now / 1000), id)
end

local function park(id)
  redis.call('HSET', P .. 'job:' .. id, 'status', 'deferred', 'park', 'suspect', 'pb', '~suspect')
  add(parked, now, id)
  add(deferred, math.floor(now / 1000), id)
end

local function take(id, row, settled, ttl, dk, lm)
  local key = P .. 'job:' .. id
  if settled or ttl then
    -- Settled before, so it may be a dead letter that an rq tool requeued: it still has the old expiry and verdict.
    redis.call('PERSIST', key)
    redis.call('PERSIST', key .. ':dependents')
    -- Not for ever: an rq tool may delete the job while it runs.
    redis.call('EXPIRE', N .. 'attempts:' .. id, 2592000)
    if settled then redis.call('HDEL', key, 'cx', 'why', 'ended_at') end
  end
  if suspects == 'park' and ((tonumber(row[5] or '') or 0) >= 1 or (tonumber(row[6] or '') or 0) >= 3) then
    return park(id)
  end
  local its, ends = lm, nil
  if set then its, ends = in_force(lm, row[9]) end
  local asked = its and stopped_by(id, its, row, ends)
  if asked then return block(id, row, asked) end
  redis.call('HSET', key, 'status', 'started', 'started_at', ARGV[9], 'worker_name', ARGV[8],
    unpack(ends and { 'lo', its } or {}))
  if row.gt or (row.lo and not ends) then redis.call('HDEL', key, 'gt', ends and 'gt' or 'lo') end
  if ends then
    row.lo = its
    as_passed(row)
  end
  if dk and dk:sub(1, 2) == 's:' then
    local name = N .. 'dedup:' .. dk:sub(3)
    if redis.call('GET', name) == 's:' .. id then redis.call('DEL', name) end
  end
  local member, k = id .. ':' .. token, #leases
  leases[k + 1], leases[k + 2] = lease_end, member
  wip[k + 1], wip[k + 2] = '+inf', member
  for _, asked in ipairs(of_queue) do pass(asked, member) end
  taken[#taken + 1] = id
  out[#out + 1] = row
end

local unknown = false
if state[3] then
  out[4] = out[4] + 1
  unknown = suspects == 'park' and number == 1 and redis.call('EXISTS', apart) == 1
  if #ARGV > 11 then
    local known = {}
    for i = 12, math.min(#ARGV, 900) do known[i - 11] = ARGV[i] end
    local hit = redis.call('SMISMEMBER', KEYS[7], unpack(known))
    for i, bucket in ipairs(known) do
      if hit[i] == 1 and #taken < want then
        local zset = N .. 'parked:' .. ARGV[10] .. ':' .. bucket
        local ids = redis.call('ZRANGE', zset, 0, want - #taken - 1)
        if #ids > 0 then
          redis.call('ZREM', zset, unpack(ids))
          redis.call('ZREM', KEYS[9], unpack(ids))
        end
        for _, id in ipairs(ids) do
          local row, status, settled, ttl, dk, lm, park = read(id)
          if row and status == 'deferred' and park then
            redis.call('HDEL', P .. 'job:' .. id, 'park', 'pb')
            take(id, row, settled, ttl, dk, lm)
          elseif status == 'broken' then
            redis.call('ZADD', KEYS[8], now, id)
          end
        end
        if redis.call('EXISTS', zset) == 0 then
          redis.call('SREM', KEYS[7], bucket)
          if redis.call('EXISTS', KEYS[7]) == 0 then redis.call('HDEL', KEYS[5], 'parked') end
        end
      end
    end
  end
end

-- A number that is written in digits alone, as all of ours are.
local function whole(text) return tonumber((text or ''):match('^%d+$') or '') end

-- Takes jobs by their places. Tenants take turns, one job each, two apart, so that who has just come has one between them
-- (`place`); the jobs of no tenant share the turns of one. Among a tenant's jobs, and among those of none, the least place
-- is first; a place is a moment, and a job that asked for none has that at which it became queued.
local function take_in_order(ordered, fair)
  local queue = ARGV[10]
  local order, of_tenants, turns = N .. 'order:' .. queue, N .. 'fair:' .. queue, N .. 'turns:' .. queue
  local turn, rest = whole(state[9]) or 0, whole(state[10]) or 0
  local short = redis.call('LLEN', KEYS[1]) <= 10000
  -- What is in vain costs a look, too.
  local looks = 10 * want

  -- Far back in a long list the id of a job with a place stays behind, and is dropped when its turn comes there.
  local function unlist(id)
    if short then redis.call('LREM', KEYS[1], 1, id) end
  end

  -- False when there was nothing to take. Who has to wait at a gate has had a turn: else it would hold up all others.
  local function try(id)
    local row, status, settled, ttl, dk, lm = read(id)
    if row and status == 'queued' then
      take(id, row, settled, ttl, dk, lm)
      return true
    end
    if status == 'broken' then redis.call('ZADD', KEYS[8], now, id) end
    return false
  end

  -- The first jobs of the list that have no place; those that have one are gone round, 100 at a time.
  local function in_line()
    local found = {}
    local placed = (ordered and redis.call('ZCARD', order) or 0) + (fair and redis.call('SCARD', of_tenants) or 0)
    if redis.call('LLEN', KEYS[1]) <= placed then return found end
    for _ = 1, 10 do
      local heads = redis.call('LRANGE', KEYS[1], 0, 99)
      if #heads > 0 then
        local places = ordered and redis.call('ZMSCORE', order, unpack(heads)) or {}
        local turned = fair and redis.call('SMISMEMBER', of_tenants, unpack(heads)) or {}
        for i, id in ipairs(heads) do
          if not places[i] and turned[i] ~= 1 then found[#found + 1] = id end
        end
      end
      if #found > 0 or #heads < 100 then break end
      redis.call('LPOP', KEYS[1], 100)
      redis.call('RPUSH', KEYS[1], unpack(heads))
    end
    return found
  end

  local line, at, head, more_line = {}, 1, nil, true
  local function first_in_line()
    while not head and looks > 0 do
      if at > #line then
        if more_line then line, at = in_line(), 1 end
        more_line = #line > 0
        if not more_line then return nil end
      end
      local id = line[at]
      local row, status, settled, ttl, dk, lm = read(id)
      if row and status == 'queued' then
        head = { id = id, row = row, settled = settled, ttl = ttl, dk = dk, lm = lm, place = tonumber(row[3] or '0') }
      else
        redis.call('LREM', KEYS[1], 1, id)
        if status == 'broken' then redis.call('ZADD', KEYS[8], now, id) end
        at, looks = at + 1, looks - 1
      end
    end
    return head
  end

  local some, next_some, more_some = {}, 1, ordered
  local function first_placed()
    if next_some > #some and more_some then
      some, next_some = redis.call('ZRANGE', order, 0, want - 1, 'WITHSCORES'), 1
      more_some = #some == 2 * want
    end
    return some[next_some], tonumber(some[next_some + 1] or '')
  end

  -- Tenants by their turns, the next one last. Those of whom nobody has had a turn in this call are as many as may
  -- still have one, so no other tenant can be before them.
  local waiting, fresh, more_tenants, moved, gone = {}, 0, fair, {}, {}
  local function await(tenant, place)
    local k = #waiting
    while k > 0 and (waiting[k].place < place or (waiting[k].place == place and waiting[k].tenant < tenant)) do
      k = k - 1
    end
    table.insert(waiting, k + 1, { tenant = tenant, place = place })
  end
  local function note()
    if #gone > 0 then redis.call('ZREM', turns, unpack(gone)) end
    local pairs_of = {}
    for _, each in ipairs(waiting) do
      if moved[each.tenant] then add(pairs_of, string.format('%.0f', each.place), each.tenant) end
    end
    if #pairs_of > 0 then redis.call('ZADD', turns, unpack(pairs_of)) end
    waiting, fresh, moved, gone = {}, 0, {}, {}
  end
  local function next_tenant()
    if fresh == 0 and more_tenants then
      note()
      local first = redis.call('ZRANGE', turns, 0, want - 1, 'WITHSCORES')
      for k = 1, #first, 2 do await(first[k], tonumber(first[k + 1])) end
      fresh = #first / 2
      more_tenants = fresh == want
    end
    return waiting[#waiting]
  end

  while #taken < want and looks > 0 do
    looks = looks - 1
    local job, place = first_placed()
    local plain = first_in_line()
    local tenant = next_tenant()
    local waits = (job or plain) and math.max(turn, rest)
    if waits and (not tenant or waits < tenant.place) then
      local had = true
      if job and (not plain or place <= plain.place) then
        redis.call('ZREM', order, job)
        unlist(job)
        had, next_some = try(job), next_some + 2
      else
        redis.call('LREM', KEYS[1], 1, plain.id)
        take(plain.id, plain.row, plain.settled, plain.ttl, plain.dk, plain.lm)
        at, head = at + 1, nil
      end
      if fair and had then turn, rest = waits, waits + 2 end
    elseif tenant then
      table.remove(waiting)
      if not moved[tenant.tenant] then fresh = fresh - 1 end
      moved[tenant.tenant] = true
      local id = redis.call('ZPOPMIN', N .. 'turn:' .. queue .. ':' .. tenant.tenant)[1]
      if not id then
        gone[#gone + 1] = tenant.tenant
        turn = math.max(turn, tenant.place)  -- it has had its turn: back at once, it would have another
      else
        redis.call('SREM', of_tenants, id)
        unlist(id)
        if try(id) then turn, tenant.place = math.max(turn, tenant.place), tenant.place + 2 end
        await(tenant.tenant, tenant.place)
      end
    else
      break
    end
  end
  if fair then
    note()
    if redis.call('EXISTS', turns) == 1 then
      redis.call('HSET', KEYS[5], 'turn', string.format('%.0f', turn), 'rest', string.format('%.0f', rest))
    else
      fair = false
      redis.call('HDEL', KEYS[5], 'fair', 'turn', 'rest')
    end
  end
  if ordered and redis.call('EXISTS', order) == 0 then
    ordered = false
    redis.call('HDEL', KEYS[5], 'order')
  end
  -- Whoever is left stands in line.
  if ordered or fair or #taken >= want then out[5] = 1 end
end

if suspects == 'only' then
  out[5] = redis.call('EXISTS', apart)
elseif state[7] or state[8] then
  -- What went wrong there must not cost those it had taken by then.
  if not pcall(take_in_order, state[7], state[8]) then out[5] = 0 end
end
local fault = nil
for _ = 1, (out[5] == 1 or suspects == 'only') and 0 or 10 do
  local room = want - #taken
  if room < 1 then break end
  local ids = redis.pcall('LPOP', KEYS[1], room) or {}
  if ids.err then fault, ids = ids, {} end
  for _, id in ipairs(ids) do
    local row, status, settled, ttl, dk, lm = read(id)
    if row and status == 'queued' then
      take(id, row, settled, ttl, dk, lm)
    elseif status == 'broken' then
      redis.call('ZADD', KEYS[8], now, id)
    end
  end
  out[5] = #ids == room and 1 or 0
  if #taken > 0 or #ids < room then break end
end
if #taken > 0 then
  local leased = raw.pcall('ZADD', KEYS[3], unpack(leases))
  if type(leased) == 'table' then
    -- Of the wrong type: nobody could ever settle these.
    for i = #taken, 1, -1 do
      redis.call('HSET', P .. 'job:' .. taken[i], 'status', 'queued')
      redis.call('HDEL', P .. 'job:' .. taken[i], 'started_at', 'worker_name')
      redis.call('LPUSH', KEYS[1], taken[i])
    end
    return leased
  end
  redis.call('ZADD', KEYS[2], unpack(wip))
end
if #deferred > 0 then redis.call('ZADD', KEYS[9], unpack(deferred)) end
if #parked > 0 then
  redis.call('ZADD', apart, unpack(parked))
  redis.call('SADD', KEYS[7], '~suspect')
  redis.call('HSET', KEYS[5], 'parked', '1')
end
if #parked > 0 or unknown then out[4] = out[4] + 4 end
if #blocked > 0 then
  redis.call('ZADD', N .. 'blocked:' .. ARGV[10], unpack(blocked))
end
for name, gate in pairs(gates) do
  if #gate.passed > 0 then
    if gate.kind == 'c' then
      redis.call('ZADD', N .. 'held:' .. name, unpack(gate.passed))
      -- Longer than any job may run: for those that an rq tool deletes while they do.
      redis.call('EXPIRE', N .. 'held:' .. name, 2678400)
    elseif gate.kind == 'b' then
      local full_at = string.format('%.6f', gate.full_at)
      redis.call('SET', N .. 'rate:' .. name, full_at, 'PX', math.ceil(gate.full_at - now) + 1000)
    else
      redis.call('ZADD', N .. 'rate:' .. name, unpack(gate.passed))
      if gate.kind == 'w' then redis.call('ZADD', N .. 'rate:' .. name, gate.used, '~sum') end
      redis.call('PEXPIRE', N .. 'rate:' .. name, math.ceil(gate.span) + 1000)
    end
  end
end
-- An empty claim is recorded too: the command of a client that timed out may run later, and must find itself stale.
redis.call('SET', KEYS[4], ARGV[5] .. ':' .. string.format('%.0f', lease_end) .. ':' .. table.concat(taken, ':'),
  'PX', 600000)
return #taken == 0 and fault or out
