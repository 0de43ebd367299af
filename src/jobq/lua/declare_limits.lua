-- declare_limits.lua: note what the settings limit queues to.
-- KEYS[1+] queue states   jobq:q:<q>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix
-- ARGV[4]  1 = replace what is noted, by a worker that starts; 0 = only where nothing is, as after a flush
-- then per queue: its name, its gates as in claim.lua ('' = no limit)
-- Returns  queues whose limits changed.   Publishes each on jobq:wake.   Idempotent by nature.
-- Full memory: the first write is a HDEL of nothing.
local changed = 0
for i, key in ipairs(KEYS) do
  local queue, gates = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  local noted = redis.call('HGET', key, 'limit') or ''
  if noted ~= gates and (ARGV[4] == '1' or noted == '') then
    redis.call('HDEL', key, 'limit')
    if gates ~= '' then redis.call('HSET', key, 'limit', gates) end
    redis.call('PUBLISH', ARGV[3] .. 'wake', queue)
    changed = changed + 1
  end
end
return changed
