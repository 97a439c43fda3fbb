-- tag(keys=[c, tv, w], args=[publish, keep, tag...]) -> word
--
-- Invalidate all entries that carry one of these tags, whatever their number. Entries are not touched: a reader
-- refuses an entry if a tag of it was invalidated at a later sequence than the one in its header.
--
--   c   STRING   control word: the tag sequence rises by one
--   tv  ZSET     tag (16 hex digits) -> sequence of its last invalidation; "#" -> floor: an entry with tags and a
--                sequence below it is refused. At most keep tags are held; the oldest fall under the floor.
--   w   channel  "c<word>" tells the other processes
--
-- The sequence in a header is that of the lease, not of the store. A computation that began before the invalidation
-- is therefore refused even if it is stored after it.

local c, tv, w, publish, keep = KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2])
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local generation, sequence = string.match(redis.call("GET", c) or "", "^(%d+):(%d+)$")
if not generation then
  generation, sequence = string.format("%.0f", clock[1] - 1704067200), string.format("%.0f", now)
end
if redis.call("EXISTS", tv) == 0 then
  -- Nothing was invalidated yet, or the list was lost: then nobody knows which tags were, and the floor refuses
  -- every entry from before the last of them.
  redis.call("ZADD", tv, sequence, "#")
end
sequence = string.format("%.0f", sequence + 1)
local word = generation .. ":" .. sequence
redis.call("SET", c, word)
for i = 3, #ARGV do
  redis.call("ZADD", tv, sequence, ARGV[i])
end
local beyond = redis.call("ZCARD", tv) - keep
if beyond > 0 then
  local oldest = redis.call("ZRANGE", tv, 0, beyond, "WITHSCORES")
  local floor = oldest[#oldest]
  for i = 1, #oldest, 2 do
    redis.call("ZREM", tv, oldest[i])
  end
  redis.call("ZADD", tv, floor, "#")
end
redis.call(publish, w, "c" .. word)
return word
