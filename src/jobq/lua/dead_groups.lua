-- dead_groups.lua: count one stretch of a queue's dead letters by task, error fingerprint and reason; writes nothing.
-- KEYS[1]  failed registry    P:failed:<q>
-- ARGV[1]  not used   ARGV[2] P   ARGV[3] not used
-- ARGV[4]  first rank, the newest being 0   ARGV[5] how many
-- ARGV[6]  only this task, or ''   ARGV[7] only fingerprints that begin so, or ''   ARGV[8] only ended since, ISO, or ''
-- Returns  {how many ids were there, group, ...}; group: {fingerprint, task, reason, count, id of the newest,
--          first moment, last moment}, the moments as ISO text
-- Keys built inside: P:job:<id>.
local task_only, error_only, since = ARGV[6], ARGV[7], ARGV[8]
local first = tonumber(ARGV[4])
local ids = redis.call('ZREVRANGE', KEYS[1], first, first + tonumber(ARGV[5]) - 1)
local groups, places = { #ids }, {}
for _, id in ipairs(ids) do
  local row = redis.pcall('HMGET', ARGV[2] .. 'job:' .. id, 'status', 'description', 'fp', 'why', 'ended_at',
    'created_at')
  if not row.err and (row[1] == 'failed' or row[1] == 'stopped') then
    local task = (row[2] or ''):match('^([^(]*)'):match('^%s*(.-)%s*$')
    local print, moment = row[3] or '', row[5] or row[6] or ''
    local reason = row[4] or (row[1] == 'stopped' and 'stopped' or 'exhausted')
    if (task_only == '' or task == task_only) and print:sub(1, #error_only) == error_only
      and (since == '' or moment >= since) then
      local name = task .. '\0' .. print .. '\0' .. reason
      local group = groups[places[name] or 0]
      if not group then
        group = { print, task, reason, 0, id, moment, moment }
        groups[#groups + 1] = group
        places[name] = #groups
      end
      group[4] = group[4] + 1
      if moment < group[6] then group[6] = moment end
      if moment > group[7] then group[7] = moment end
    end
  end
end
return groups
