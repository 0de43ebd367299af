-- allowed.lua: which commands of our scripts this Redis user may not run, tried on keys that are nobody's.
-- KEYS[1]  a key of ours      jobq:doctor
-- KEYS[2]  a key as rq's      P:doctor
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix
-- Returns  names of refused commands, each once; nothing: all are allowed
-- Idempotent: it leaves two strings behind, for a second. All else fails at them by its type, or finds no key.
-- Full memory: the first write is a SET, refused like any other.
local refused, seen = {}, {}

-- Whether the user may; any other error than a refusal is none of ours.
local function may(name, ...)
  local reply = redis.pcall(name, ...)
  local text = type(reply) == 'table' and reply.err and tostring(reply.err)
  if not (text and (text:find('NOPERM', 1, true) or text:find('permission', 1, true) or text:find("can't run", 1, true))) then
    return true
  end
  if not seen[name] then
    seen[name] = true
    refused[#refused + 1] = name
  end
  return false
end

may('TIME')
may('PUBLISH', ARGV[3] .. 'doctor', '')
for _, key in ipairs(KEYS) do
  local there = may('SET', key, '', 'PX', 1000)
  for _, name in ipairs({ 'DEL', 'UNLINK', 'PERSIST', 'LPOP', 'ZPOPMIN' }) do
    may(name, key .. ':nobody')
  end
  for _, name in ipairs({ 'EXISTS', 'GET', 'MGET', 'TTL', 'TYPE', 'HGETALL', 'LLEN', 'SCARD', 'SMEMBERS', 'SRANDMEMBER',
    'ZCARD' }) do
    may(name, key)
  end
  for _, name in ipairs({ 'HDEL', 'HEXISTS', 'HGET', 'HMGET', 'LPOS', 'SMISMEMBER', 'SREM', 'ZMSCORE', 'ZREM', 'ZSCORE' }) do
    may(name, key .. ':nobody', 'nobody')
  end
  for _, name in ipairs({ 'EXPIRE', 'PEXPIRE', 'PEXPIREAT', 'LINDEX' }) do
    may(name, key .. ':nobody', 1)
  end
  for _, name in ipairs({ 'LRANGE', 'LTRIM', 'ZCOUNT', 'ZRANGE', 'ZRANGEBYSCORE', 'ZREMRANGEBYSCORE', 'ZREVRANGE' }) do
    may(name, key .. ':nobody', 0, 0)
  end
  may('LREM', key .. ':nobody', 0, 'nobody')
  if there then -- a string: these fail at it, and write nothing
    for _, name in ipairs({ 'LPUSH', 'RPUSH', 'SADD' }) do
      may(name, key, 'nobody')
    end
    may('HSET', key, 'nobody', 1)
    may('HSETNX', key, 'nobody', 1)
    may('HINCRBY', key, 'nobody', 1)
    may('ZADD', key, 1, 'nobody')
    may('ZINCRBY', key, 1, 'nobody')
    may('ZUNIONSTORE', key, 1, key)
    may('XADD', key, '*', 'nobody', 1)
  end
end
return refused
