-- declare_limits.lua: note what the settings say of queues, as far as scripts go by it.
-- KEYS[1+] queue states   jobq:q:<q>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  1 = replace what is noted, by a worker that starts; 0 = only where nothing is, as after a flush
-- then per queue: its name; limit, its gates as in claim.lua; max, the most jobs that may wait; step, ms of waiting
--          that one step of order is worth; '' = as without
-- Returns  queues of which something changed.   Publishes each on jobq:wake.   Idempotent by nature.
-- Full memory: the first write is a HDEL of nothing.
local changed, NAMES = 0, { 'limit', 'max', 'step' }
for i, key in ipairs(KEYS) do
  local at = 1 + 4 * i
  local noted, differs = redis.call('HMGET', key, unpack(NAMES)), false
  redis.call('HDEL', key, '')
  for k, name in ipairs(NAMES) do
    local old, new = noted[k] or '', ARGV[at + k]
    if old ~= new and (ARGV[4] == '1' or old == '') then
      if new == '' then redis.call('HDEL', key, name) else redis.call('HSET', key, name, new) end
      differs = true
    end
  end
  if differs then
    redis.call('PUBLISH', ARGV[3] .. 'wake', ARGV[at])
    changed = changed + 1
  end
end
return changed
