-- _books: no script of its own. It stands in front of every script that changes the books ("-- uses _books").
--
-- The books of a partition are two sorted sets over the same members (member = "<generation>:<digest>"):
--   KEYS[1]  l  member -> last access, in milliseconds with three decimals: the order of eviction
--   KEYS[2]  x  member -> (expiry - 1704067200) * 2^22 + units
--               expiry: seconds, rounded up, since 2024-01-01; units: 64 bytes each, at most 2^22 - 1 (256 MiB)
--               "#"    -> minus the sum of all units
--
-- Invariants, after every script:
--   1. -score(x, "#") = the sum of the units of all other members of x. One key holds both, so that they live and
--      die together: in two keys they drift for good once Redis evicts one of them.
--   2. l and x hold the same members. Only Redis itself can break this, by evicting one of them; heal repairs it.
--   3. No key is touched that is not in KEYS.

local l, x = KEYS[1], KEYS[2]
local EPOCH, UNIT = 1704067200, 4194304

local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local this_use = string.format("%.3f", clock[1] * 1000 + clock[2] / 1000)

-- The greatest fence given out, as far as f tells: text that is no fence counts as none.
local function last_fence(f)
  local last = redis.pcall("GET", f)
  last = type(last) == "string" and string.match(last, "^%d+$") and tonumber(last) or 0
  return last < 9007199254740992 and last or 0
end

-- The fence of an entry or a grave; 0 for nothing, for what is not ours, and for a fence that no clock has reached.
local function entry_fence(e)
  local head = redis.pcall("GETRANGE", e, 0, 15)
  if type(head) ~= "string" or #head < 16 or string.sub(head, 1, 3) ~= "AO\1" then
    return 0
  end
  local fence = struct.unpack(">I8", head, 9)
  return fence < 9007199254740992 and fence or 0
end

-- Record a member that lives until expiry_ms and weighs units. Returns true if it was recorded before, and minus the
-- sum of all units.
local function record(member, expiry_ms, units)
  local score = string.format("%.0f", (math.ceil(expiry_ms / 1000) - EPOCH) * UNIT + units)
  if redis.call("ZADD", x, "NX", score, member) == 1 then
    return false, redis.call("ZINCRBY", x, -units, "#")
  end
  local old = redis.call("ZSCORE", x, member)
  redis.call("ZADD", x, score, member)
  return true, redis.call("ZINCRBY", x, old % UNIT - units, "#")
end

-- Take a member out of the books. Returns 1 if it was in x. ZREM comes first: under OOM a script may write
-- freely once it has written something that Redis allows.
local function drop(member)
  redis.call("ZREM", l, member)
  local score = redis.call("ZSCORE", x, member)
  if not score then
    return 0
  end
  redis.call("ZREM", x, member)
  redis.call("ZINCRBY", x, score % UNIT, "#")
  return 1
end

-- Drop at most limit members whose expiry has passed. "#" has a score <= 0 and is never in the range.
local function sweep(limit)
  local beyond = string.format("(%.0f", (math.floor(now / 1000) + 1 - EPOCH) * UNIT)
  local dead = redis.call("ZRANGE", x, "1", beyond, "BYSCORE", "LIMIT", "0", limit)
  for i = 1, #dead do
    drop(dead[i])
  end
  return #dead
end

local function usage()
  return math.max(redis.call("ZCARD", x) - 1, 0), -tonumber(redis.call("ZSCORE", x, "#") or "0")
end

-- Evict the victims that an earlier reply named, while over a limit. KEYS[key..] are their entries, ARGV[arg..]
-- their (member, score) pairs. A victim whose score has changed was used in the meantime and is spared.
local function evict(key, arg, max_entries, max_units)
  local evicted = 0
  for i = key, #KEYS do
    local entries, units = usage()
    if entries <= max_entries and units <= max_units then
      break
    end
    local member, score = ARGV[arg + 2 * (i - key)], ARGV[arg + 2 * (i - key) + 1]
    local current = redis.call("ZSCORE", l, member)
    if current == score or (not current and redis.call("ZSCORE", x, member)) then
      redis.call("UNLINK", KEYS[i])
      evicted = evicted + drop(member)
    end
  end
  return evicted
end

-- Say whether the partition is over a limit, and name the next victims once it is within 2 % of one: the least
-- recently used, or, where Redis evicted l, those that expire first.
local function outlook(count, max_entries, max_units)
  local entries, units = usage()
  local over = (entries > max_entries or units > max_units) and 1 or 0
  if count == 0 or (entries < max_entries * 0.98 and units < max_units * 0.98) then
    return over, {}
  end
  if redis.call("ZCARD", l) < entries then
    return over, redis.call("ZRANGE", x, 1, count, "WITHSCORES")
  end
  return over, redis.call("ZRANGE", l, 0, count - 1, "WITHSCORES")
end
