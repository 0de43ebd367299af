-- move.lua: put queued jobs at the back of another queue.
-- KEYS[1]  list to leave    P:queue:<from>
-- KEYS[2]  list to enter    P:queue:<to>
-- KEYS[3]  set of queues    P:queues
-- ARGV[1]  now, ms (unused)   ARGV[2] P   ARGV[3] our prefix   ARGV[4] from   ARGV[5] to
-- ARGV[6+] ids that stand at the head of the list
-- Returns  {word, ...} in order: moved | dropped (its entry was in vain, and is gone) | late (it has left meanwhile)
-- Keys built inside: P:job:<id>, jobq:order:<from>.
-- A job keeps its age, its dedup key and its limits: none of them is the queue's.
-- Idempotent: a job that the first call moved answers moved.
-- Full memory: the first write is LREM, which frees.
local P, from, to = ARGV[2], ARGV[4], ARGV[5]
local words, push = {}, {}
for a = 6, #ARGV do
  local id, word = ARGV[a], 'late'
  local row = redis.pcall('HMGET', P .. 'job:' .. id, 'status', 'origin')
  local queued = not row.err and row[1] == 'queued'
  if queued and row[2] == to then
    word = 'moved'
  elseif redis.call('LPOS', KEYS[1], id, 'MAXLEN', 1000) then
    redis.call('LREM', KEYS[1], 1, id)
    redis.call('ZREM', ARGV[3] .. 'order:' .. from, id)
    word = 'dropped'
    if queued and row[2] == from then
      redis.call('HSET', P .. 'job:' .. id, 'origin', to)
      push[#push + 1] = id
      word = 'moved'
    end
  end
  words[#words + 1] = word
end
if #push > 0 then
  redis.call('RPUSH', KEYS[2], unpack(push))
  redis.call('SADD', KEYS[3], KEYS[2])
end
return words
