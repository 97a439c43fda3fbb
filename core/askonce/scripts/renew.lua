-- renew(keys=[k, r], args=[holder, lease_ms]) -> 1 renewed | 0 lost
--
-- Prolong a lease, every third of its time. holder = "<generation>:<fence>:<token>", the value of k.
-- A lost lease stops nothing: the computation ends, and store judges it by its fence.
--
--   r  LIST  chunks of the running stream, if there is one: kept as long as the lease (see publish)

local k, r, holder, lease_ms = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call("GET", k) == holder then
  redis.call("PEXPIRE", r, lease_ms)
  return redis.call("PEXPIRE", k, lease_ms)
end
return 0
