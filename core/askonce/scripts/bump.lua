-- bump(keys=[c, w], args=[generation, publish]) -> word
--
-- Set the generation if it is greater than the current one. Every entry of an older generation is unreachable at
-- once. Idempotent, so it may be repeated, and sent to all partitions in any order. A reader that finds a generation
-- below its own sends its own here: a failover that lost a bump is repaired by the first reader.
--
--   c  STRING   control word
--   w  channel  "c<word>" tells the other processes

local c, w, generation, publish = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local clock = redis.call("TIME")
local word = redis.call("GET", c)
local current, sequence = string.match(word or "", "^(%d+):(%d+)$")
if not current then
  current, sequence = "-1", string.format("%.0f", clock[1] * 1000 + math.floor(clock[2] / 1000))
end
if tonumber(current) < tonumber(generation) then
  word = generation .. ":" .. sequence
  redis.call("SET", c, word)
  redis.call(publish, w, "c" .. word)
end
return word
