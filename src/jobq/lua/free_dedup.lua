-- free_dedup.lua: find dedup keys whose holder is not live, which refuse nobody, and delete them when asked.
-- KEYS[1+] dedup keys   jobq:dedup:<task>:<digest>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = delete
-- Returns  {1 it refuses nobody | 0, ...}
-- Keys built inside: P:job:<id>.
-- Idempotent by nature.   Full memory: it only frees.
local P, fix, out = ARGV[2], ARGV[4] == '1', {}
local LIVE = { queued = true, scheduled = true, started = true, deferred = true, created = true,
  ready_to_enqueue = true, rate_limited = true }
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  local dead = 0
  -- A window (mode w) has an expiry and outlives its job; what is no string is not ours.
  if type(value) == 'string' and redis.call('TTL', key) < 0 then
    local mode, id = value:match('^(%a):(.*)$')
    local status = id and redis.pcall('HGET', P .. 'job:' .. id, 'status')
    if type(status) ~= 'string' or not LIVE[status] or (mode == 's' and status == 'started') then dead = 1 end
    -- A hash that cannot be read may still become a live job.
    if type(status) == 'table' then dead = 0 end
  end
  if dead == 1 and fix then redis.call('DEL', key) end
  out[i] = dead
end
return out
