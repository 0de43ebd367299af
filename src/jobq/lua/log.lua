-- log.lua: add lines to a job's log, while its lease stands.
-- KEYS[1]  job hash   P:job:<id>
-- KEYS[2]  leases     jobq:leases
-- KEYS[3]  log        jobq:log:<id>
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] <id>:<token>
-- ARGV[5]  most lines to keep   ARGV[6] seconds to keep them   ARGV[7+] lines
-- Returns  1 noted | 0 the lease is lost
-- A line is kept as '<number> <attempt> <line>', numbered from 1, so that a reader knows what it has seen and missed.
-- Not idempotent: a repeat adds the lines again.
-- Full memory: the first write is a ZREM of nobody.
if not redis.call('ZSCORE', KEYS[2], ARGV[4]) then return 0 end
-- A deleted job gets no log.
local row = redis.pcall('HMGET', KEYS[1], 'status', 'attempts')
if row.err or not row[1] then return 0 end
local attempt = (tonumber(row[2] or '0') or 0) + 1
local last = redis.pcall('LINDEX', KEYS[3], -1)
if type(last) == 'table' then return 0 end
redis.call('ZREM', KEYS[2], '')
local number = last and tonumber(last:match('^%d+') or '') or 0
for a = 7, #ARGV do
  redis.call('RPUSH', KEYS[3], string.format('%d %d %s', number + a - 6, attempt, ARGV[a]))
end
redis.call('LTRIM', KEYS[3], -tonumber(ARGV[5]), -1)
redis.call('EXPIRE', KEYS[3], ARGV[6])
return 1
