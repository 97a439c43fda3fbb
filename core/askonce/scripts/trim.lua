-- uses _books
-- trim(keys=[l, x, victim...], args=[sweep, max_entries, max_units, peek, (member, score)...])
--   -> {now_ms, swept, evicted, over, [member, score, ...]}
--
-- Sweep what has expired and evict the named victims while over a limit; name the next. For a store that was still
-- over, for usage, and under OOM: its first write frees memory, so it is allowed there.
-- At most 64 victims a call (about 0.4 ms of the server).

local sweep_limit, max_entries, max_units, peek = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local swept = sweep(sweep_limit)
local evicted = evict(3, 5, max_entries, max_units)
local over, victims = outlook(peek, max_entries, max_units)
return {now, swept, evicted, over, victims}
