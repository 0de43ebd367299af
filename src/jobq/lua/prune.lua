-- prune.lua: delete ended jobs of one queue by age and count, and what else is left over.
-- KEYS[1]  finished registry  P:finished:<q>
-- KEYS[2]  failed registry    P:failed:<q>
-- KEYS[3]  cancelled zset     P:canceled:<q>
-- KEYS[4]  retrying zset      jobq:retrying:<q>
-- KEYS[5]  scheduled zset     P:scheduled:<q>
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4] most jobs
-- ARGV[5]  most succeeded to keep   ARGV[6] most dead to keep (< 0 = any number)   ARGV[7] seconds to keep a cancelled
-- ARGV[8]  ISO time a minute ago: what ended later is not deleted for the count   ARGV[9] most cancelled to keep
-- Returns  count of entries removed
-- Keys built inside: P:job:<id>, P:results:<id>, P:job:<id>:dependents, P:job::<id>:dependencies,
--          jobq:attempts:<id>, jobq:log:<id>, jobq:dedup:<name>, jobq:cancels, jobq:tag:<tag>,
--          jobq:corr:<correlation id>.
-- Idempotent by nature.   Full memory: it only frees.
local P, N, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
-- From here on a key of the wrong type is as good as empty, and nothing is written to it: it costs itself alone.
local raw, EMPTY = redis, { GET = false, HGET = false, LPOP = false, LPOS = false, LLEN = 0, ZCARD = 0, SCARD = 0,
  ZSCORE = false }
local redis = { pcall = raw.pcall, call = function(...)
  local reply = raw.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not tostring(reply.err):find('WRONGTYPE', 1, true) then return raw.call(...) end
  local empty = EMPTY[(...)]
  if empty == nil then return {} end
  return empty
end }
local now_s = math.floor(now / 1000)
local removed = 0

-- The entries by which it was found. Most jobs carry neither tags nor a correlation id, and pay nothing.
local function forget(id, jk)
  local read, extra = pcall(cjson.decode, jk)
  if not read or type(extra) ~= 'table' then return end
  if type(extra.correlation_id) == 'string' then redis.call('ZREM', N .. 'corr:' .. extra.correlation_id, id) end
  for _, tag in ipairs(type(extra.tags) == 'table' and extra.tags or {}) do
    redis.call('ZREM', N .. 'tag:' .. tostring(tag), id)
  end
end

local function clear(zset, ids, words)
  if #ids == 0 then return end
  redis.call('ZREM', zset, unpack(ids))
  -- A stock worker knows nothing of the request that its job had.
  redis.call('SREM', N .. 'cancels', unpack(ids))
  removed = removed + #ids
  for _, id in ipairs(ids) do
    local key = P .. 'job:' .. id
    local row = redis.pcall('HMGET', key, 'status', 'dk', 'jk')
    -- An rq tool may have queued it again and left the entry behind: then the entry alone goes.
    if not row.err and (not row[1] or words[row[1]]) then
      redis.call('UNLINK', key, P .. 'results:' .. id, N .. 'attempts:' .. id, N .. 'log:' .. id,
        P .. 'job:' .. id .. ':dependents', P .. 'job::' .. id .. ':dependencies')
      if row[3] then forget(id, row[3]) end
      local dk = row[2]
      if dk and dk:sub(1, 2) ~= 'w:' then
        local name = N .. 'dedup:' .. dk:sub(3)
        if redis.call('GET', name) == dk:sub(1, 2) .. id then redis.call('DEL', name) end
      end
    end
  end
end

local function prune(zset, words, ends, keep)
  if removed >= most then return end
  clear(zset, redis.call('ZRANGEBYSCORE', zset, '-inf', ends, 'LIMIT', 0, most - removed), words)
  local room = most - removed
  if keep < 0 or room < 1 then return end
  local over = redis.call('ZCARD', zset) - keep
  if over < 1 then return end
  -- A terminal hash lives for a minute at least, so that a late repeat of its enqueue still finds it.
  local ids = {}
  for _, id in ipairs(redis.call('ZRANGE', zset, 0, math.min(over, room) - 1)) do
    local ended = redis.pcall('HGET', P .. 'job:' .. id, 'ended_at')
    if type(ended) ~= 'string' or ended < ARGV[8] then ids[#ids + 1] = id end
  end
  clear(zset, ids, words)
end

prune(KEYS[1], { finished = true }, now_s, tonumber(ARGV[5]))
prune(KEYS[2], { failed = true, stopped = true }, now_s, tonumber(ARGV[6]))
prune(KEYS[3], { canceled = true }, now_s - tonumber(ARGV[7]), tonumber(ARGV[9]))
local gone = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, most)) do
  if not redis.call('ZSCORE', KEYS[5], id) then gone[#gone + 1] = id end
end
if #gone > 0 then redis.call('ZREM', KEYS[4], unpack(gone)) end
return removed
