-- settle.lua: record how attempts ended, and free their leases; all jobs are of one queue.
-- KEYS[1]  leases             jobq:leases
-- KEYS[2]  started registry   P:wip:<q>
-- KEYS[3]  queue list         P:queue:<q>
-- KEYS[4]  finished registry  P:finished:<q>
-- KEYS[5]  failed registry    P:failed:<q>
-- KEYS[6]  scheduled zset     P:scheduled:<q>
-- KEYS[7]  cancelled zset     P:canceled:<q>
-- KEYS[8]  deferred zset      P:deferred:<q>
-- KEYS[9]  retrying zset      jobq:retrying:<q>
-- KEYS[10] cancel requests    jobq:cancels
-- KEYS[11] children to come   jobq:after
-- KEYS[12] queue state        jobq:q:<q>
-- KEYS[13] parked buckets     jobq:parked:<q>
-- KEYS[14] quarantine         jobq:quarantine
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] queue name   ARGV[5] ended_at, ISO
-- ARGV[6]  number of outcomes
-- then per outcome: id, token, kind, spends 0|1, keep seconds, count of what follows, name, value, ... where name is
--          delay (ms) why fp bucket rec res exc worker crash alone n (counter names, comma-separated)
-- Returns  {word, ...} in order: ok | already | lost | cancelled | gone, and dead for a run that was interrupted once
--          too often
-- Keys built inside: P:job:<id>, P:results:<id>, P:job:<id>:dependents, jobq:dedup:<name>, jobq:attempts:<id>,
--          jobq:wait:<id>, jobq:done:<id>, jobq:parked:<q>:<bucket>, jobq:n:<q>:<minute>; for jobs with limits:
--          jobq:held:<gate>, jobq:rate:<gate>, jobq:closed:<gate>, jobq:gate:<gate>, jobq:gates, jobq:blocked:<q>; of
--          jobs with an order or a tenant: jobq:q:<q>, jobq:order:<q>, jobq:turns:<q>, jobq:fair:<q>,
--          jobq:turn:<q>:<tenant>.
-- A job that was limited waits at its rate's gate, else at the one that counts the runs of its key; that gate is closed
-- for the delay, as '<until, ms> <id>'. A job with neither closes its queue, and is the first of it. open.lua lets in who
-- waits for a run that has ended here.
-- Idempotent: membership in leases is the fence; a token that settled before is found in st.
-- Full memory: the first write is ZREM, which frees; after it Redis lets the rest of a script pass.
-- Once a lease is freed its job is settled, whatever type the keys beside it have: what would go there is left out, and
-- doctor names the key.
local P, N, queue, ended_at = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local now_s = math.floor(now / 1000)
local count = tonumber(ARGV[6])
if count == 0 then return {} end

local jobs, members, flags, answers, pos = {}, {}, {}, {}, 7
for i = 1, count do
  local job = { id = ARGV[pos], token = ARGV[pos + 1], kind = ARGV[pos + 2], spends = ARGV[pos + 3] == '1',
    keep = math.max(60, tonumber(ARGV[pos + 4])) }
  local extra = tonumber(ARGV[pos + 5])
  for k = pos + 6, pos + 5 + extra, 2 do job[ARGV[k]] = ARGV[k + 1] end
  pos = pos + 6 + extra
  jobs[i], members[i] = job, job.id .. ':' .. job.token
  flags[2 * i - 1], flags[2 * i] = N .. 'wait:' .. job.id, P .. 'job:' .. job.id .. ':dependents'
end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(members))
local flagged = redis.call('EXISTS', unpack(flags)) > 0

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

-- A number that a hash counts with.
local function count_of(text)
  local number = tonumber(text or '')
  return number and number >= 0 and number < 1e15 and math.floor(number) or 0
end

-- First look at everything, then write.
local free, uncancel, broken, seen, gated, unnamed = {}, {}, {}, {}, {}, {}
for i, job in ipairs(jobs) do
  local row = redis.pcall('HMGET', P .. 'job:' .. job.id, 'status', 'attempts', 'dk', 'cx', 'st', 'lost', 'crashes',
    'q', 'lm', 'or', 'tn', 'lo')
  if row.err then
    answers[i] = 'gone'
    if scores[i] then
      free[#free + 1] = members[i]
      broken[#broken + 1] = job.id
      unnamed[#unnamed + 1] = members[i]
    end
  elseif seen[members[i]] then
    answers[i] = 'already'
  elseif not scores[i] then
    if not row[1] then
      answers[i] = 'gone'
    else
      answers[i] = row[5] == job.token and 'already' or 'lost'
      if answers[i] == 'already' and job.kind == 'interrupted' and row[1] == 'failed' then answers[i] = 'dead' end
      if answers[i] == 'already' and job.kind ~= 'cancelled' and row[1] == 'canceled' then answers[i] = 'cancelled' end
    end
  else
    seen[members[i]] = true
    free[#free + 1] = members[i]
    local passed = row[12] or row[9]
    if passed then gated[#gated + 1] = { member = members[i], passed = passed, back = job.kind == 'hand_back' } end
    if row[4] or row[1] ~= 'started' then uncancel[#uncancel + 1] = job.id end
    if not row[1] then
      answers[i] = 'gone'
      unnamed[#unnamed + 1] = members[i]
    elseif row[1] ~= 'started' then
      answers[i] = row[1] == 'canceled' and 'cancelled' or 'lost'
    else
      answers[i] = 'ok'
      job.go, job.row = true, row
      if row[4] and job.kind ~= 'succeeded' then
        if job.kind ~= 'cancelled' then answers[i] = 'cancelled' end
        job.kind, job.why = 'cancelled', job.kind == 'cancelled' and job.why or 'requested'
      elseif job.kind == 'interrupted' then
        if job.crash == '1' then
          job.counter, job.total = 'crashes', count_of(row[7]) + 1
          job.condemned = job.alone == '1' and job.total >= 2
        else
          job.counter, job.total = 'lost', count_of(row[6]) + 1
          job.condemned = job.total >= 6
        end
        if job.condemned then answers[i] = 'dead' end
      end
    end
  end
end
if #free == 0 then return answers end
redis.call('ZREM', KEYS[1], unpack(free))
redis.call('ZREM', KEYS[2], unpack(free))
if #uncancel > 0 then redis.call('SREM', KEYS[10], unpack(uncancel)) end
for _, id in ipairs(broken) do redis.call('ZADD', KEYS[14], now, id) end
for _, run in ipairs(gated) do
  for kind, name, cost in run.passed:gmatch('(%a),%d+,%d+,%d+,([^;,]+),?(%d*)') do
    -- What never started has used up nothing.
    local set = kind == 'c' and 'held:' or run.back and (kind == 'r' or kind == 'w') and 'rate:'
    local member = kind == 'w' and run.member .. ':' .. cost or run.member
    if set and redis.pcall('ZREM', N .. set .. name, member) == 1 then
      if kind == 'w' then redis.call('ZINCRBY', N .. 'rate:' .. name, '-' .. cost, '~sum') end
      redis.call('ZADD', N .. 'gates', 'XX', 'LT', now, name)
    end
  end
end
if #unnamed > 0 then
  -- The hash that named the gates is gone; of those that nobody waits at, claim frees the place when they are full.
  for _, name in ipairs(redis.call('ZRANGE', N .. 'gates', 0, 999)) do
    if redis.call('ZREM', N .. 'held:' .. name, unpack(unnamed)) > 0 then
      redis.call('ZADD', N .. 'gates', 'XX', 'LT', now, name)
    end
  end
end

local finished, failed, canceled, scheduled, retrying, back, counts, names = {}, {}, {}, {}, {}, {}, {}, {}
local function add(list, score, id)
  local k = #list
  list[k + 1], list[k + 2] = score, id
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

-- Closes what a job shares with others until `till`: where it waits instead of running again at once.
local function close(id, lm, till)
  local kind, gate = (lm or ''):match('([rbw]),%d+,%d+,%d+,([^;,]+)')
  -- Only a gate of a key has two colons.
  if not gate then kind, gate = (lm or ''):match('(c),%d+,%d+,%d+,([^;:]+:[^;:]+:[^;]+)') end
  if gate then
    local name = N .. 'closed:' .. gate
    local before = redis.pcall('GET', name)
    before = tonumber(type(before) == 'string' and before:match('^%d+') or '0')
    if before < till then
      redis.call('SET', name, string.format('%.0f %s', till, id), 'PX', math.max(1, till - now))
    end
    redis.call('ZADD', N .. 'gates', math.max(before, till), gate)
    return 'gate', { kind = kind, name = gate }
  end
  if (tonumber(redis.call('HGET', KEYS[12], 'closed') or '') or 0) < till then
    redis.call('HSET', KEYS[12], 'closed', string.format('%.0f', till), 'closed_by', id)
  end
  return 'queue'
end

-- What every end has in common: expiry, dedup key, waiters, children.
local function finish(job, key, state, has_result)
  local row, id = job.row, job.id
  redis.call('EXPIRE', key, job.keep)
  -- Settled before, so there may be records of earlier attempts, and the stream of a replayed dead letter.
  if job.rec or row[5] then redis.call('EXPIRE', N .. 'attempts:' .. id, job.keep) end
  if has_result or row[5] then redis.call('EXPIRE', P .. 'results:' .. id, job.keep) end
  local dk = row[3]
  if dk and dk:sub(1, 2) ~= 'w:' then
    local name = N .. 'dedup:' .. dk:sub(3)
    if redis.call('GET', name) == dk:sub(1, 2) .. id then redis.call('DEL', name) end
  end
  if flagged then
    if redis.call('EXISTS', N .. 'wait:' .. id) == 1 then
      redis.call('RPUSH', N .. 'done:' .. id, state)
      redis.call('EXPIRE', N .. 'done:' .. id, 60)
    end
    if redis.call('EXISTS', P .. 'job:' .. id .. ':dependents') == 1 then
      redis.call('EXPIRE', P .. 'job:' .. id .. ':dependents', job.keep)
      redis.call('ZADD', KEYS[11], now, id)
    end
  end
end

for _, job in ipairs(jobs) do
  if job.go then
    local id, row, kind = job.id, job.row, job.kind
    local key = P .. 'job:' .. id
    local attempts = count_of(row[2])
    local gate
    if kind == 'limited' then
      kind, gate = close(id, row[9], now + tonumber(job.delay or '0'))
    end
    local set = { 'st', job.token, 'status' }
    local function put(name, value)
      local k = #set
      set[k + 1], set[k + 2] = name, value
    end
    local result, exc = nil, nil
    if kind == 'interrupted' then
      if job.condemned then kind, job.why = 'dead', 'poison' end
      set = { 'st', job.token, job.counter, job.total, 'status' }
    elseif job.spends then
      attempts = attempts + 1
      set = { 'st', job.token, 'attempts', attempts, 'status' }
    end
    local word = #set + 1
    if kind == 'succeeded' then
      set[word] = 'finished'
      put('ended_at', ended_at)
      -- Of a success: why its result was not kept.
      if job.why then put('why', job.why) end
      result = job.res
      add(finished, now_s + job.keep, id)
    elseif kind == 'dead' then
      set[word] = 'failed'
      put('ended_at', ended_at)
      put('why', job.why or 'exhausted')
      if job.fp then put('fp', job.fp) end
      exc = job.exc
      add(failed, now_s + job.keep, id)
    elseif kind == 'cancelled' then
      set[word] = 'canceled'
      put('ended_at', ended_at)
      put('cx', '1')
      if job.why then put('why', job.why) end
      add(canceled, now_s, id)
    elseif kind == 'retry' or kind == 'snooze' then
      local due = now + tonumber(job.delay or '0')
      set[word] = 'scheduled'
      -- A job of plain rq's has no q: by that the next claim knows to bring rq's own fields along.
      if row[8] then put('q', string.format('%.0f', due)) end
      if job.fp then put('fp', job.fp) end
      -- A snooze is known by the token that st has, too: the next settle makes it the past.
      if kind == 'snooze' then put('sz', job.token) end
      add(scheduled, string.format('%.3f', due / 1000), id)
      if attempts > 0 then add(retrying, string.format('%.0f', due), id) end
    elseif kind == 'park' then
      set[word] = 'deferred'
      put('park', job.why or 'parked')
      if job.fp then put('fp', job.fp) end
      local bucket = job.bucket or ''
      put('pb', bucket)
      redis.call('ZADD', KEYS[8], now_s, id)
      redis.call('ZADD', N .. 'parked:' .. queue .. ':' .. bucket, now, id)
      redis.call('SADD', KEYS[13], bucket)
      redis.call('HSET', KEYS[12], 'parked', '1')
    elseif kind == 'gate' then
      set[word] = 'deferred'
      put('park', gate.kind == 'c' and 'concurrency' or 'rate')
      put('pb', '~gate:' .. gate.name)
      redis.call('ZADD', KEYS[8], now_s, id)
      redis.call('ZADD', N .. 'blocked:' .. queue, now, id)
      redis.call('ZADD', N .. 'gate:' .. gate.name, (row[8] or ''):match('^%d+$') or now, id)
    else
      set[word] = 'queued'
      back[#back + 1] = id
      place(queue, id, tonumber(row[8] or '') or now, row[10], row[11])
    end
    redis.call('HSET', key, unpack(set))
    if set[word] == 'queued' then redis.call('HDEL', key, 'started_at', 'worker_name') end
    if job.rec then
      redis.call('RPUSH', N .. 'attempts:' .. id, job.rec)
      redis.call('LTRIM', N .. 'attempts:' .. id, -20, -1)
      -- While the job goes on, too: an rq tool that deletes it knows nothing of them.
      redis.call('EXPIRE', N .. 'attempts:' .. id, 2592000)
    end
    if result then
      redis.call('XADD', P .. 'results:' .. id, 'MAXLEN', '10', '*', 'type', '1', 'worker_name', job.worker or '',
        'return_value', result)
    elseif exc then
      redis.call('XADD', P .. 'results:' .. id, 'MAXLEN', '10', '*', 'type', '2', 'worker_name', job.worker or '',
        'exc_string', exc)
    end
    if kind == 'succeeded' or kind == 'dead' or kind == 'cancelled' then
      finish(job, key, kind, result or exc)
    end
    if job.n then
      for name in job.n:gmatch('[^,]+') do
        -- What it has become here counts, not what its worker took it for.
        local mark = (kind == 'cancelled' and 'c') or (kind == 'dead' and 'd')
        if mark and name:find('^[rdo]:') then name = mark .. name:sub(2) end
        if not counts[name] then
          counts[name] = 0
          names[#names + 1] = name
        end
        counts[name] = counts[name] + 1
      end
    end
  end
end
if #finished > 0 then redis.call('ZADD', KEYS[4], unpack(finished)) end
if #failed > 0 then redis.call('ZADD', KEYS[5], unpack(failed)) end
if #scheduled > 0 then redis.call('ZADD', KEYS[6], unpack(scheduled)) end
if #canceled > 0 then redis.call('ZADD', KEYS[7], unpack(canceled)) end
if #retrying > 0 then redis.call('ZADD', KEYS[9], unpack(retrying)) end
if #back > 0 then
  -- Last first, so that they stand in front in the order they had.
  local front = {}
  for i = #back, 1, -1 do front[#front + 1] = back[i] end
  redis.call('LPUSH', KEYS[3], unpack(front))
end
for start = 1, #names, 400 do
  -- One read and one write for all counters; the script is atomic, and the lease lets each job count once.
  local minute = N .. 'n:' .. queue .. ':' .. string.format('%.0f', math.floor(now_s / 60))
  local part = { unpack(names, start, math.min(#names, start + 399)) }
  local old = redis.call('HMGET', minute, 't', unpack(part))
  local set = { 't', '1' }
  for i, name in ipairs(part) do
    set[2 * i + 1], set[2 * i + 2] = name, (tonumber(old[i + 1] or '0') or 0) + counts[name]
  end
  redis.call('HSET', minute, unpack(set))
  if not old[1] then redis.call('EXPIRE', minute, 93600) end
end
return answers
