-- audit(keys=[l, x], args=[]) -> {units counted, units summed, members of x, members of l, only in x, only in l}
--
-- For tests only: reads the whole of both books in one step, so that nothing moves meanwhile.
--
--   l  ZSET  member -> last access
--   x  ZSET  member -> expiry and units in one number; "#" -> minus the sum of all units

local l, x = KEYS[1], KEYS[2]
local recorded = redis.call("ZRANGE", x, 0, -1, "WITHSCORES")
local counted, summed, members, only_x = 0, 0, 0, 0
for i = 1, #recorded, 2 do
  if recorded[i] == "#" then
    counted = -tonumber(recorded[i + 1])
  else
    members = members + 1
    summed = summed + recorded[i + 1] % 4194304
    if not redis.call("ZSCORE", l, recorded[i]) then
      only_x = only_x + 1
    end
  end
end
local in_l = redis.call("ZCARD", l)
return {counted, summed, members, in_l, only_x, in_l - (members - only_x)}
