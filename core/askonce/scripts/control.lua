-- control(keys=[c], args=[]) -> {now_ms, word, 1 written here | 0 found}
--
-- Read the control word, or write a first one. Called once per partition and process, on connecting, and whenever
-- a read finds no control word, or one that is none.
--
--   c  STRING  "<generation>:<tag sequence>"
--
-- A missing word never means "generation 1": after an eviction or a failover that lost the key, old entries would
-- come back. The first generation is the clock in seconds since 2024-01-01, the first tag sequence the clock in
-- milliseconds. Both exceed every earlier one as long as bumps average less than one a second and tag
-- invalidations less than a thousand. A process that remembers a greater generation sends it to bump.

local c = KEYS[1]
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local word, written = redis.pcall("GET", c), 0
local generation, sequence = string.match(type(word) == "string" and word or "", "^(%d+):(%d+)$")
-- What is no word of ours (a header has four bytes for a generation, a clock fifteen digits) is written anew.
if not generation or #generation > 10 or tonumber(generation) > 4294967295 or #sequence > 15 then
  written = 1
  word = string.format("%.0f:%.0f", clock[1] - 1704067200, now)
  redis.call("SET", c, word)
end
return {now, word, written}
