-- release(keys=[k, w], args=[holder, tombstone_ms, text, publish, message]) -> 1 released | 0 not the holder
--
-- Give a lease back without storing. holder is the value of k, or "-<random>" if the fence is not known because the
-- caller was interrupted while it asked for the lease.
--   tombstone_ms = 0   hand over: one of the waiters becomes the next leader
--   tombstone_ms > 0   tell the waiters: text is the error to raise, or "" if the answer may not be stored, so
--                      that they all compute at once instead of queueing for the lease one after the other
--
--   k  STRING   lease (see lease)
--   w  channel  of the partition; publish = "PUBLISH", or "SPUBLISH" in a cluster

local k, w = KEYS[1], KEYS[2]
local holder, tombstone_ms, text, publish, message = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call("GET", k)
if not held or string.sub(held, -#holder) ~= holder then
  return 0
end
redis.call("DEL", k) -- first: under OOM a script may write once it has written something that Redis allows
if tombstone_ms ~= "0" then
  redis.call("SET", k, "!" .. string.match(held, "^%d+:%d+:") .. text, "PX", tombstone_ms)
end
redis.call(publish, w, message)
return 1
