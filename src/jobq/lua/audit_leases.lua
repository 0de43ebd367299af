-- audit_leases.lua: find leases that do not fit a running job, and set them right when asked.
-- KEYS[1]  leases            jobq:leases
-- KEYS[2]  cancel requests   jobq:cancels
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = set them right   ARGV[5] lease ms
-- ARGV[6+] members; all of one job in the same call
-- Returns  {word, ...}: '' it is right | dead_lease, its job does not run | second_lease, a later one exists |
--          no_wip, rq's registry of started jobs lacks it
-- Keys built inside: P:job:<id>, P:wip:<q>; of jobs with limits: jobq:held:<gate>, jobq:gates.
-- Idempotent: what is right stays.   Full memory: the first write is a ZREM of nobody.
local P, fix, lease = ARGV[2], ARGV[4] == '1', tonumber(ARGV[5])
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
-- The longest lease that can be configured: nobody extends to beyond it.
local LONGEST_MS = 3600000
if fix then redis.call('ZREM', KEYS[1], '') end
local ends, latest, out = {}, {}, {}

-- Gives a run's places back; without the hash that names them, those at gates where somebody waits.
local function leave_gates(member, lm)
  local names = {}
  if lm then
    for name in lm:gmatch('c,%d+,%d+,%d+,([^;]+)') do names[#names + 1] = name end
  else
    names = redis.call('ZRANGE', ARGV[3] .. 'gates', 0, 999)
  end
  for _, name in ipairs(names) do
    if redis.pcall('ZREM', ARGV[3] .. 'held:' .. name, member) == 1 then
      redis.pcall('ZADD', ARGV[3] .. 'gates', 'XX', 'LT', now, name)
    end
  end
end

for a = 6, #ARGV do
  local member = ARGV[a]
  local id, score = member:match('^[^:]*'), tonumber(redis.call('ZSCORE', KEYS[1], member) or '')
  ends[member] = score
  if score and (not latest[id] or score > ends[latest[id]]) then latest[id] = member end
end
for a = 6, #ARGV do
  local member, word = ARGV[a], ''
  local id, score = member:match('^[^:]*'), ends[member]
  if score then
    local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'origin', 'lm', 'lo')
    local queue = not row.err and row[2]
    local wip = queue and P .. 'wip:' .. queue
    if row.err or row[1] ~= 'started' then
      -- Its executor learns at the settle that the job was taken from it; until then it extends the lease.
      if score < now - lease or score > now + LONGEST_MS then word = 'dead_lease' end
    elseif latest[id] ~= member then
      word = 'second_lease'
    elseif wip and not redis.pcall('ZSCORE', wip, member) then
      word = 'no_wip'
    end
    if fix and word == 'no_wip' then
      redis.call('ZADD', wip, '+inf', member)
    elseif fix and word ~= '' then
      redis.call('ZREM', KEYS[1], member)
      if wip then redis.pcall('ZREM', wip, member) end
      leave_gates(member, not row.err and (row[4] or row[3]))
      if word == 'dead_lease' then redis.call('SREM', KEYS[2], id) end
    end
  end
  out[#out + 1] = word
end
return out
