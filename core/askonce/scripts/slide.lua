-- uses _books
-- slide(keys=[l, x, e], args=[member, ttl_ms, max_age_ms, window_ms]) -> fresh_until_ms | 0 nothing to do
--
-- Keep a hot entry fresh for ttl_ms from now, but never beyond max_age_ms after it was created; Redis keeps it
-- window_ms (the longest stale window) longer. Header, PX and books change together. Lifetimes never shrink.
-- Byte 24 of the header: fresh until, byte 32: retained until, both in milliseconds.

local e, member = KEYS[3], ARGV[1]
local ttl_ms, max_age_ms, window_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local score = redis.call("ZSCORE", x, member)
local header = redis.pcall("GETRANGE", e, 0, 47)
if not score or type(header) ~= "string" or #header < 48 or string.sub(header, 1, 3) ~= "AO\1" or string.byte(header, 4) >= 128 then
  return 0
end
local created, fresh, retained = struct.unpack(">I8I8I8", header, 17)
local fresh_until = math.min(now + ttl_ms, created + max_age_ms)
if fresh_until <= fresh then
  return 0
end
local retained_until = math.max(fresh_until + window_ms, retained)
redis.call("SETRANGE", e, 24, struct.pack(">I8I8", fresh_until, retained_until))
redis.call("PEXPIREAT", e, string.format("%.0f", retained_until))
record(member, retained_until, score % UNIT)
return fresh_until
