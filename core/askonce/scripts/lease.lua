-- lease(keys=[c, e, k, f], args=[generation, token, lease_ms, seen, waited])
--   -> {1, now_ms, word, entry}            here is the entry
--   -> {2, now_ms, word, fence}            the lease is yours: compute, then store or release
--   -> {3, now_ms, word, fence, left_ms, token}  that flight is computing: wait for its message, at most left_ms
--   -> {4, now_ms, word, text}             the flight that you waited for has failed with this error;
--                                          "" = its answer may not be stored: compute without a lease
--   -> {5, now_ms, word}                   your generation is not the current one ("" = no control word)
--
--   c  STRING  control word
--   e  STRING  entry. Flag 128 marks a grave (see forget)
--   k  STRING  "<generation>:<fence>:<token>" while computing, "!<generation>:<fence>:<text>" after a failure. PX
--   f  STRING  the last fence that was given out
--
-- token:  "<tag sequence>-<random>": the sequence when the computation began, for those who would follow it
-- seen:   bytes 8-15 (the fence) of the entry that the caller holds and wants replaced; "" if it holds none
-- waited: fence of the flight that the caller waited for; "" for a newcomer. Errors are shared only with those
--         who waited: nobody who asks later is answered with an old error. "*" for a refresh behind a caller, which
--         any failure keeps away while its tombstone stands.
--
-- A lease whose fence is below a grave's is given to the next who asks: what it computes was invalidated, and its
-- store will be refused.
--
-- Invariants: at most one unexpired lease per digest and generation. Fences rise, even if f is lost: a fence
-- exceeds the last one, the fence of the entry and the clock in microseconds. The call may be repeated after a
-- lost reply: the same token is granted the same lease.

local c, e, k, f = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local generation, token, lease_ms, seen, waited = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local EXACT = 9007199254740992 -- 2^53: no clock has reached it; a greater fence is not ours

local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local word = redis.pcall("GET", c)
word = type(word) == "string" and word or ""
if string.match(word, "^(%d+):%d+$") ~= generation then
  return {5, now, word}
end

local entry = redis.pcall("GET", e) -- another type, written by a stranger, counts as nothing
local stored, invalidated = 0, 0
if type(entry) == "string" and #entry >= 48 and string.sub(entry, 1, 3) == "AO\1" then
  stored = struct.unpack(">I8", entry, 9)
  if stored >= EXACT then
    stored = 0
  elseif string.byte(entry, 4) >= 128 then
    invalidated = stored
  elseif string.sub(entry, 9, 16) ~= seen then
    return {1, now, word, entry}
  end
end

local held = redis.pcall("GET", k)
if type(held) == "string" then
  local failed, of, fence, rest = string.match(held, "^(!?)(%d+):(%d+):(.*)$")
  if of == generation then
    if failed == "" and rest == token then
      redis.call("PEXPIRE", k, lease_ms)
      return {2, now, word, tonumber(fence)}
    elseif failed == "" and tonumber(fence) > invalidated then
      return {3, now, word, tonumber(fence), redis.call("PTTL", k), rest}
    elseif failed == "!" and (fence == waited or waited == "*") then
      return {4, now, word, rest}
    end
  end
end

local last = redis.pcall("GET", f) -- text that is no fence counts as none
last = type(last) == "string" and string.match(last, "^%d+$") and tonumber(last) or 0
if last >= EXACT then
  last = 0
end
local fence = math.max(last + 1, stored + 1, clock[1] * 1000000 + clock[2])
local text = string.format("%.0f", fence)
redis.call("SET", f, text)
redis.call("SET", k, generation .. ":" .. text .. ":" .. token, "PX", lease_ms)
return {2, now, word, fence}
