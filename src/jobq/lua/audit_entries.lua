-- audit_entries.lua: find entries of one registry whose job is elsewhere or gone, and remove them when asked.
-- KEYS[1]  registry   a sorted set of ids, or of <id>:<token>
-- KEYS[2]  leases     jobq:leases
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = remove
-- ARGV[5]  queue, '*' = any
-- ARGV[6]  statuses that belong here, comma-separated   ARGV[7] bucket of parked jobs that this is, '*' = none
-- ARGV[8]  1 = entries whose score (s) has passed are prune's, and no finding   ARGV[9+] members
-- Returns  {word, ...}: '' it belongs here | gone | the job's status | elsewhere (another queue or bucket)
-- Keys built inside: P:job:<id>.
-- Idempotent: what belongs here stays.   Full memory: it only frees.
local P, fix, queue, bucket = ARGV[2], ARGV[4] == '1', ARGV[5], ARGV[7]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local now_s = math.floor(now / 1000)
local words = {}
for word in ARGV[6]:gmatch('[^,]+') do words[word] = true end
local out = {}
for a = 9, #ARGV do
  local member, word = ARGV[a], ''
  local row = redis.pcall('HMGET', P .. 'job:' .. member:match('^[^:]*'), 'status', 'origin', 'pb')
  local score = redis.call('ZSCORE', KEYS[1], member)
  if score and not row.err then
    if not row[1] then
      word = ARGV[8] == '1' and tonumber(score) <= now_s and '' or 'gone'
    elseif not words[row[1]] then
      word = row[1]
    elseif (queue ~= '*' and row[2] ~= queue) or (bucket ~= '*' and row[3] ~= bucket) then
      word = 'elsewhere'
    end
    -- A run that an rq tool ended under its executor stands until that settles, or until its lease is over.
    if word ~= '' and member:find(':', 1, true) then
      local finite = tonumber(score)
      if redis.call('ZSCORE', KEYS[2], member) or (finite < math.huge and finite > now_s - 90) then word = '' end
    end
    if word ~= '' and fix then redis.call('ZREM', KEYS[1], member) end
  end
  out[#out + 1] = word
end
return out
