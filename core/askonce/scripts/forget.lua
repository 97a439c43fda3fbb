-- uses _books
-- forget(keys=[l, x, f, w, e...], args=[grave_ms, publish, member...]) -> entries removed
--
-- Invalidate entries, or, with grave_ms = 0, sweep up what is unreachable anyway.
--
--   f  STRING   the last fence that was given out
--   w  channel  "x<member>" tells the near caches
--
-- An invalidated entry leaves a grave: a header with flag 128 and a new fence, for as long as the longest lease.
-- A computation that began before the invalidation has a lower fence, and store refuses it. Graves (48 bytes) are
-- not in the books. Readers take a grave for a miss.

local f, w, grave_ms, publish = KEYS[3], KEYS[4], tonumber(ARGV[1]), ARGV[2]
local removed = 0
for i = 5, #KEYS do
  local member = ARGV[i - 2]
  local buried = grave_ms > 0 and entry_fence(KEYS[i]) or 0
  redis.call("UNLINK", KEYS[i])
  removed = removed + drop(member)
  if grave_ms > 0 then
    local fence = math.max(last_fence(f) + 1, buried + 1, clock[1] * 1000000 + clock[2])
    redis.call("SET", f, string.format("%.0f", fence))
    redis.call("SET", KEYS[i], struct.pack(">c3BI4I8I8I8I8I8", "AO\1", 128, 0, fence, now, 0, 0, 0), "PX", grave_ms)
    redis.call(publish, w, "x" .. member)
  end
end
return removed
