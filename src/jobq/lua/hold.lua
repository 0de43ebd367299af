-- hold.lua: count runs that began before an operator limited how many of their task run at once.
-- KEYS[1]  leases                    jobq:leases
-- KEYS[2]  limits set by operators   jobq:limits
-- ARGV[1]  now, ms; '' = TIME   ARGV[2] P   ARGV[3] our prefix   ARGV[4+] members of leases
-- Returns  runs that hold a place more now
-- Keys built inside: P:job:<id>, jobq:held:<gate>.
-- The places are noted in lo of the job, as claim.lua does, so that whoever ends the run frees them.
-- Idempotent: a place that lo names is held already.   Full memory: the first write is a ZREM of nobody.
local P, N = ARGV[2], ARGV[3]
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
-- What operators have set for a task, or for one key of it; false when nothing holds. What makes no sense sets nothing.
local set, said = nil, {}
local HEADS = { r = '^[rbso],', w = '^[wbso],', c = '^[cs],' }
local function said_of(name)
  if said[name] ~= nil then return said[name] end
  local found, at = false, set:find('\n' .. name .. ' ', 1, true)
  local ends, r, w, c = nil, nil, nil, nil
  if at then ends, r, w, c = set:match('^(%d+) (%S+) (%S+) (%S+)', at + #name + 2) end
  local till = ends and #ends < 16 and tonumber(ends)
  if till and (till == 0 or till > now) then
    found = { ends = till > 0 and till or math.huge }
    for slot, head in pairs({ r = r, w = w, c = c }) do
      local kind, limit, window, burst = head:match('^(%a),(%d+),(%d+),(%d+)$')
      if kind and head:find(HEADS[slot]) and #limit < 13 and #window < 13 and #burst < 13 then
        local most, ms, some = tonumber(limit), tonumber(window), tonumber(burst)
        local free = kind == 's' or kind == 'o'
        if free or (most > 0 and (kind == 'c' or ms > 0) and (kind ~= 'b' or (some > 0 and some < most))) then
          found[slot] = { head = head, free = free, lets = kind == 'o', most = kind == 'b' and some or most }
        end
      end
    end
  end
  said[name] = found
  return found
end

-- The gates of a job: what is set in place of what it declares. A limit that it shares with other tasks stays as it is,
-- and what is set comes on top. Second, when the first of what is set ends; nil: nothing is.
local function in_force(lm, description)
  local task = (description or ''):match('^%s*([^%s(]*)')
  if task == '' then return lm end
  local whole, single = said_of(task), said[task .. ':']
  if single == nil then
    single = set:find('\n' .. task .. ':', 1, true) or false
    said[task .. ':'] = single
  end
  if not whole and not single then return lm end
  local ends, out, has, keys = nil, {}, {}, {}
  local function put(found, slot, name, cost)
    ends = math.min(ends or found.ends, found.ends)
    out[#out + 1] = found[slot].head .. ',' .. name .. cost
  end
  for kind, limit, window, burst, name, cost in (lm or ''):gmatch('(%a),(%d+),(%d+),(%d+),([^;,]+),?(%d*)') do
    local slot, whose, found = name:match('^([rwc]):'), name:sub(3), nil
    local keyed = whose:sub(1, #task + 1) == task .. ':'
    if slot and (keyed or whose == task) then
      local counts = slot == 'w' and 'r' or slot
      has[counts] = true
      if keyed then
        if not has[whose] then
          has[whose], keys[#keys + 1] = {}, whose
        end
        has[whose][counts] = true
        found = single and said_of(whose)
      end
      if not (found and found[slot]) then found = whole end
    end
    local part = found and found[slot]
    if part then
      -- What costs more than there ever is goes alone.
      local its = cost ~= '' and not part.free and math.max(1, math.min(tonumber(cost), part.most))
      put(found, slot, name, its and string.format(',%.0f', its) or '')
    else
      out[#out + 1] = table.concat({ kind, limit, window, burst, name, cost ~= '' and cost or nil }, ',')
    end
  end
  local function more(found, slot, name)
    if found and found[slot] and not found[slot].lets then put(found, slot, slot .. ':' .. name, '') end
  end
  for _, slot in ipairs({ 'r', 'c' }) do
    if not has[slot] then more(whole, slot, task) end
    for _, whose in ipairs(keys) do
      if single and not has[whose][slot] then more(said_of(whose), slot, whose) end
    end
  end
  if not ends then return lm end
  return table.concat(out, ';'), ends
end
set = redis.call('MGET', KEYS[2])[1]
if not set or #ARGV < 4 then return 0 end
redis.call('ZREM', KEYS[1], '')
local members, counted = { unpack(ARGV, 4) }, 0
local leased = redis.call('ZMSCORE', KEYS[1], unpack(members))
for i, member in ipairs(members) do
  local key = P .. 'job:' .. member:match('^[^:]*')
  local row = leased[i] and redis.pcall('HMGET', key, 'status', 'description', 'lm', 'lo')
  if row and not row.err and row[1] == 'started' then
    local its, ends = in_force(row[3], row[2])
    local passed, more = row[4] or row[3] or '', false
    for gate, name in (ends and its or ''):gmatch('(c,%d+,%d+,%d+,([^;,]+))') do
      local held = (';' .. passed .. ';'):find(',' .. name .. ';', 1, true)
      if not held and type(redis.pcall('ZADD', N .. 'held:' .. name, now, member)) ~= 'table' then
        redis.call('EXPIRE', N .. 'held:' .. name, 2678400)
        passed, more = passed .. (passed ~= '' and ';' or '') .. gate, true
      end
    end
    if more then
      redis.call('HSET', key, 'lo', passed)
      counted = counted + 1
    end
  end
end
return counted
