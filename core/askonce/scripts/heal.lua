-- uses _books
-- heal(keys=[l, x, e...], args=[overhead, member...]) -> {dropped, adopted}
--
-- Make the books of these members agree with their entries, in both directions.
--   entry gone (evicted by Redis, deleted by a stranger)   dropped from l and x
--   entry there, not in x (Redis evicted x)                adopted, with its length and its PTTL
--   entry there, not in l (Redis evicted l)                put back, as used now
--   entry there, other length (changed by a stranger)      recorded anew
-- Called with a sample of the books, and with any member whose touch disagreed with its entry.

local overhead = tonumber(ARGV[1])
local dropped, adopted = 0, 0
for i = 3, #KEYS do
  local member = ARGV[i - 1]
  local length, left = redis.pcall("STRLEN", KEYS[i]), redis.call("PTTL", KEYS[i])
  local score = redis.call("ZSCORE", x, member)
  if type(length) ~= "number" or length <= 48 then
    dropped = dropped + drop(member)
  elseif left > 0 then
    local units = math.ceil((length + overhead) / 64)
    if not score or score % UNIT ~= units then
      record(member, now + left, units)
      adopted = adopted + 1
    end
    redis.call("ZADD", l, "NX", this_use, member)
  end
end
return {dropped, adopted}
