-- audit_members.lua: find members of a set whose owner is gone, and remove them when asked.
-- KEYS[1]  the set, or sorted set   jobq:cancels, jobq:held:<gate>, jobq:after, P:workers
-- KEYS[2]  leases                   jobq:leases
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = remove
-- ARGV[5]  what a member needs: run (of a job of this id) | lease (of this name) | parent (a job, or children that wait for
--          it) | key (of this name)   ARGV[6+] members
-- Returns  {1 it is gone | 0, ...}
-- Keys built inside: P:job:<id>, P:job:<id>:dependents, P:worker:<name>.
-- Idempotent: whose owner is there stays.   Full memory: it only frees.
local P, fix, rule = ARGV[2], ARGV[4] == '1', ARGV[5]
local sorted = redis.call('TYPE', KEYS[1]).ok == 'zset'
local out = {}
for a = 6, #ARGV do
  local member = ARGV[a]
  local here = redis.pcall(sorted and 'ZSCORE' or 'SISMEMBER', KEYS[1], member)
  local gone = false
  if here and here ~= 0 and type(here) ~= 'table' then
    if rule == 'run' then
      local status = redis.pcall('HGET', P .. 'job:' .. member, 'status')
      gone = type(status) ~= 'table' and status ~= 'started'
    elseif rule == 'lease' then
      gone = not redis.pcall('ZSCORE', KEYS[2], member)
    elseif rule == 'parent' then
      gone = redis.call('EXISTS', P .. 'job:' .. member, P .. 'job:' .. member .. ':dependents') == 0
    else
      gone = redis.call('EXISTS', member) == 0
    end
    if gone and fix then redis.call(sorted and 'ZREM' or 'SREM', KEYS[1], member) end
  end
  out[#out + 1] = gone and 1 or 0
end
return out
