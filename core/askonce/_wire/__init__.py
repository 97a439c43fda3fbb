"""
Connections to Redis.

redis-py connects, authenticates, encrypts and parses; this package decides who shares a connection, how long an
exchange may take and when to stop asking.  Every failure leaves it as ``BackendUnavailable``; an error that Redis
answers to one command is a value in the replies.
"""
