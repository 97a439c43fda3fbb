-- publish(keys=[k, r, w], args=[holder, keep_ms, publish, message, before, chunk...])
--   -> chunks so far | 0 the lease, or what was published before, is lost
--
-- Let others follow a running stream: append chunks (gathered for some 50 ms, at most 1000) and wake who waits.
-- A follower knows the fence from its lease call; it reads r from its own count on at each message, and the entry
-- once the flight has landed. A lost lease stops the publishing, not the stream. before: how many chunks were published
-- so far; if the list holds another number it was lost, and what is left of it would be taken for the beginning.
--
--   k  STRING   lease (see lease)
--   r  LIST     "r:<digest>:<fence>", PX keep_ms: the chunks of one flight, not of a leader before it. Not in the books
--   w  channel  message = "r<digest>"

local k, r, w = KEYS[1], KEYS[2], KEYS[3]
local holder, keep_ms, publish, message = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local chunks = {}
local before = tonumber(ARGV[5])
for i = 6, #ARGV do
  chunks[#chunks + 1] = ARGV[i]
end
if redis.call("GET", k) ~= holder then
  return 0
end
local there = redis.pcall("LLEN", r)
if there ~= before then
  redis.call("DEL", r)
  return 0
end
local count = redis.call("RPUSH", r, unpack(chunks))
redis.call("PEXPIRE", r, keep_ms)
redis.call(publish, w, message)
return count
