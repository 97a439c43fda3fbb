-- uses _books
-- store(keys=[l, x, e, c, k, w, victim...],
--       args=[generation, member, flags, sequence, body, ttl_ms, window_ms, max_entries, max_units, overhead,
--             sweep, peek, fence, holder, publish, message, tidy, (member, score)...])
--   -> {code, now_ms, swept, evicted, over, [member, score, ...]}
--
--   code  1  stored
--         2  stored in place of another entry
--        -1  refused: the entry there has a higher fence, so a later leader was faster
--        -2  refused: larger than the whole partition may be
--        -3  refused: the generation has moved, nobody could read it
--   over  1  still over a limit: call trim with the victims named
--
-- Stores an entry, keeps the books, gives the lease back and wakes the waiters: one step, one round trip. The header is
-- written here, so that every time in it is this server's.
--
-- It sweeps what has expired if tidy is 1 (swept is -1 where it did not look). Within 2 % of a limit it always does,
-- evicts the victims that the last reply named, and names the next ones.
--
-- sequence: of tags, when the computation began; "" for a value that was computed just now
-- body:   tags (if flag 8) and payload
-- fence:  of the lease; "" for a store without a lease, which gets the next one here (last writer wins)
-- holder: "<generation>:<fence>:<token>", or "" without a lease. A lost lease is no reason to refuse: with a lease
--         shorter than the computation nothing would ever be stored.
--
-- Invariants: those of _books; a fence never falls; every SET has PX.

local e, c, k, w = KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local generation, member, flags, sequence, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local ttl_ms, window_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local max_entries, max_units, overhead = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local sweep_limit, peek, fence, holder = tonumber(ARGV[11]), tonumber(ARGV[12]), ARGV[13], ARGV[14]
local publish, message, tidy = ARGV[15], ARGV[16], ARGV[17]

local read = redis.call("MGET", c, k)
local held = read[2]

-- Free the lease if it is ours (an empty tombstone if the answer may not be stored), wake who waits. Near caches hear
-- of every store: they may hold a copy of an entry that is gone from here.
local function land(tombstone_ms)
  if held == holder and tombstone_ms then
    redis.call("SET", k, "!" .. string.match(holder, "^%d+:%d+:"), "PX", tombstone_ms)
  elseif held == holder then
    redis.call("DEL", k)
  end
  redis.call(publish, w, message)
end

local current, latest = string.match(read[1] or "", "^(%d+):(%d+)$")
if current ~= generation then
  land()
  return {-3, now, -1, 0, 0, {}}
end

local stored = entry_fence(e)
if fence == "" then
  fence = math.max(stored + 1, clock[1] * 1000000 + clock[2])
else
  fence = tonumber(fence)
  if stored > fence then
    land()
    return {-1, now, -1, 0, 0, {}}
  end
end

local units = math.ceil((48 + #body + overhead) / 64)
if units > max_units or units >= UNIT then
  land(300)
  return {-2, now, -1, 0, 0, {}}
end

local fresh_until = now + ttl_ms
local retained_until = fresh_until + window_ms
local header = struct.pack(">c3BI4I8I8I8I8I8", "AO\1", tonumber(flags), tonumber(generation), fence, now, fresh_until, retained_until, tonumber(sequence == "" and latest or sequence))
redis.call("SET", e, header .. body, "PX", string.format("%.0f", ttl_ms + window_ms))
local replaced, total = record(member, retained_until, units)
redis.call("ZADD", l, this_use, member)
land()

local swept, evicted, over, victims = -1, 0, 0, {}
local is_near = redis.call("ZCARD", x) - 1 >= max_entries * 0.98 or -tonumber(total) >= max_units * 0.98
if is_near or tidy == "1" then
  swept = sweep(sweep_limit)
end
if is_near then
  evicted = evict(7, 18, max_entries, max_units)
  over, victims = outlook(peek, max_entries, max_units)
end
return {replaced and 2 or 1, now, swept, evicted, over, victims}
