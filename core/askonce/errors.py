"""
Every error that askonce raises on its own account.

    AskonceError
    ├── ConfigurationError    a wrong argument: raised where it is given, never later
    │   └── MissingExtra      an optional package is not installed
    ├── Uncacheable           a request or a value that cannot be keyed or stored without guessing
    ├── NotCached             only_if_cached was asked for, and nothing can be served
    ├── LeaderFailed          the caller elsewhere whose answer this call waited for has failed
    ├── StreamBroken          a stream that was followed broke off, and cannot be continued as it began
    └── BackendUnavailable    Redis did not answer in time, or answered with an error
        ├── OutOfMemory       ... that it has no room (-OOM)
        ├── Unfit             ... that it cannot serve now (read-only, loading, not permitted)
        ├── Moved             ... that another node of the cluster has the key now, or none
        └── Disagreement      ... that the namespace is laid out otherwise than this cache was made

``BackendUnavailable`` reaches the caller only from a cache made with ``strict=True``; otherwise the call is made
without the cache and counted.  An exception of the caller's own function is never wrapped.
"""


class AskonceError(Exception):
    """Base of every error raised by askonce itself."""


class ConfigurationError(AskonceError, ValueError):
    """An argument is wrong: the message says what was given and what is allowed."""


class MissingExtra(ConfigurationError, ImportError):
    """An optional package is missing: the message names the extra that brings it."""


class Uncacheable(AskonceError, TypeError):
    """A request or value has no safe form in the cache: the message names the path to what is in the way."""


class NotCached(AskonceError, LookupError):
    """``only_if_cached`` was asked for and nothing can be served (RFC 9111, section 5.2.1.7)."""


class LeaderFailed(AskonceError):
    """
    Another process computed this answer and failed; the failure is shared with those who waited for it.

    ``error_type`` is the qualified name of the exception there.  Its text stays in that process: an error of a
    provider may quote a credential.
    """

    def __init__(self, error_type: str) -> None:
        super().__init__(
            f"the process that computed this answer failed with {error_type}; "
            "ask again to compute it here (the failure is not kept)"
        )
        self.error_type = error_type

    def __reduce__(self) -> tuple[type["LeaderFailed"], tuple[str]]:
        return type(self), (self.error_type,)


class StreamBroken(AskonceError):
    """
    The leader of a stream that this caller followed is gone, and the answer computed instead begins differently.

    ``passed`` is how many chunks this caller was given before.  No chunk is ever given twice.
    """

    def __init__(self, passed: int) -> None:
        super().__init__(
            f"the stream broke off after {passed} chunks, and the model's new answer begins differently; "
            "ask again for a whole one"
        )
        self.passed = passed

    def __reduce__(self) -> tuple[type["StreamBroken"], tuple[int]]:
        return type(self), (self.passed,)


class BackendUnavailable(AskonceError):
    """Redis could not be reached within the deadline, or answered with an error."""


class OutOfMemory(BackendUnavailable):
    """Redis has no room for a write under its ``maxmemory`` and policy."""


class Unfit(BackendUnavailable):
    """Redis answers, but cannot do what is asked: a replica, a server that loads or is blocked, a permission."""


class Moved(BackendUnavailable):
    """A node of a cluster answers that the key is not its own now: a slot is moving, or the cluster is not whole."""


class Disagreement(BackendUnavailable):
    """The namespace is laid out otherwise: another cache was made with another number of ``partitions``."""
