-- audit_keys.lua: find keys that belong to no job and that nothing will delete, and let them expire when asked.
-- KEYS[1]  ended parents   jobq:after
-- KEYS[2+] keys beside a job: results, attempts, dependents, dependencies, wait, done; or counters
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = let them expire
-- then per key: id of its job ('' = it must expire whatever becomes of jobs), seconds to give it, 1 = its children wait
-- Returns  {1 nothing will delete it | 0, ...}
-- Keys built inside: P:job:<id>.
-- Idempotent: what expires is no finding.   Full memory: EXPIRE is never refused, and ZADD comes after it.
local P, fix, out = ARGV[2], ARGV[4] == '1', {}
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
for i = 2, #KEYS do
  local a = 3 * i - 1
  local id, ttl = ARGV[a], redis.call('TTL', KEYS[i])
  local left = ttl == -1 and (id == '' or redis.call('EXISTS', P .. 'job:' .. id) == 0)
  if left and fix then
    redis.call('EXPIRE', KEYS[i], ARGV[a + 1])
    -- By rq's rule a parent that is gone holds no child back: release looks at them.
    if ARGV[a + 2] == '1' then redis.call('ZADD', KEYS[1], now, id) end
  end
  out[i - 1] = left and 1 or 0
end
return out
