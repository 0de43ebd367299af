-- audit_lists.lua: find ids that are in a queue's list once too often, or in that of another queue, and take them out when
-- asked.
-- KEYS[1]  queue list   P:queue:<q>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] 1 = take them out   ARGV[5] queue   ARGV[6+] ids
-- Returns  {'' nothing is wrong | wrong_list | second_copy, ...}
-- Keys built inside: P:job:<id>, P:queue:<its own>.
-- Idempotent: one copy in the right list stays, the first.   Full memory: it only frees.
local P, fix, queue = ARGV[2], ARGV[4] == '1', ARGV[5]
-- More than this of a list is not searched: 20 ms.
local FAR = 1000000
local out = {}
for a = 6, #ARGV do
  local id, word = ARGV[a], ''
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'origin')
  if not row.err and row[1] == 'queued' and row[2] then
    local places = redis.pcall('LPOS', KEYS[1], id, 'COUNT', 2, 'MAXLEN', FAR)
    local copies = type(places) == 'table' and not places.err and #places or 0
    if copies > 0 and row[2] ~= queue then
      word = 'wrong_list'
      if fix then redis.call('LREM', KEYS[1], 0, id) end
    elseif copies > 1 then
      word = 'second_copy'
      if fix then
        -- From the back, until only the first is left.
        local all = #redis.call('LPOS', KEYS[1], id, 'COUNT', 0, 'MAXLEN', FAR)
        redis.call('LREM', KEYS[1], 1 - all, id)
      end
    end
  end
  out[#out + 1] = word
end
return out
