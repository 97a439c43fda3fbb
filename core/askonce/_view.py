"""
What is public and asks nothing of Redis: the arguments of a cache, its scopes, what it says of itself.

``Cache`` and ``AsyncCache`` are views of one ``Namespace``; a scope is a view whose keys hold further parts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Sequence
from typing import Any, Literal, TypeVar

from ._call import Call
from ._namespace import Namespace
from ._programs import Ask
from ._recording import Asked
from ._settings import Settings
from .control import NONE, Control, current
from .entry import Codec
from .errors import ConfigurationError
from .keys import PLAIN, Explanation, Fingerprints, Request, check_text, differences, visible
from .near import Near
from .policy import Admit, Duration, Policy, Size, seconds
from .served import AnyServed
from .stats import Event

V = TypeVar("V", bound="View")


class View:
    """The part of a cache that does no I/O."""

    _namespace: Namespace
    _fingerprints: Fingerprints
    _policy: Policy
    _admit: Admit | None

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        version: str = "",
        policy: Policy | None = None,
        max_entries: int = 10_000,
        max_bytes: Size = "512mb",
        near: Near | None = None,
        partitions: int | None = None,
        deadline: Duration = 0.1,
        admit: Admit | None = None,
        client: object = None,
        strict: bool = False,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        """
        Make a cache.  Connects to nothing; a wrong argument raises ConfigurationError.

        ``url``: redis://, rediss://, unix://, redis+cluster://, redis+sentinel:// (both rediss+ too) or
        embedded://[folder]; without one ASKONCE_URL, then REDIS_URL, then the embedded server.  ``client``: a redis-py
        client instead (plain, RedisCluster, Sentinel.master_for), whose addresses and credentials are used.
        ``namespace``: who; nothing is served across.  ``version``: which prompt template or schema; in the key.
        ``max_entries``, ``max_bytes``: bounds of the namespace in Redis, kept by evicting the least recently used.
        ``near``: keep copies in this process too, see ``askonce.Near``; None keeps none.
        ``partitions``: into how many parts the namespace is split, 1 to 1024; None is 16 in a cluster and 1 elsewhere.
        All caches of a namespace must agree, the first one fixes it; bounds are divided by it.
        ``deadline``: the most that Redis may add to a call, in seconds; then the cache steps aside.
        ``admit``: decides what is stored, see ``askonce.Admit``.  ``strict``: raise BackendUnavailable instead of
        doing without the cache (tests, migrations).  ``on_event`` hears of what an operator wants to know, see
        ``askonce.Event``; it is called from any thread and must not block.
        """
        if not isinstance(version, str):
            raise ConfigurationError(
                f"version={version!r} is {type(version).__name__}; give text such as 'v3'"
            )
        check_text("version", version)
        for name, function in (("admit", admit), ("on_event", on_event)):
            if function is not None and not callable(function):
                raise ConfigurationError(
                    f"{name}={function!r} is no function; give a callable, or leave it out"
                )
        if policy is not None and not isinstance(policy, Policy):
            raise ConfigurationError(f"policy={policy!r} is no Policy; give askonce.Policy(ttl='24h')")
        settings = Settings.checked(
            url=url,
            client=client,
            namespace=namespace,
            max_entries=max_entries,
            max_bytes=max_bytes,
            partitions=partitions,
            deadline=deadline,
            strict=strict,
            on_event=on_event,
            near=near,
        )
        self._namespace = Namespace(settings)
        self._fingerprints = Fingerprints(version, {})
        self._policy = policy or Policy()
        self._admit = admit

    def scope(self: V, **parts: object) -> V:
        """
        Return a child whose keys also hold these parts (``repo=``, ``path=``, ``tenant=``), sharing everything else.

        A part is a JSON-like value; one that the parent has too is replaced.
        """
        return self._sibling(type(self), self._fingerprints.within(parts))

    def _sibling(self, kind: type[V], fingerprints: Fingerprints) -> V:
        view = kind.__new__(kind)
        view._namespace, view._policy, view._admit = self._namespace, self._policy, self._admit
        view._fingerprints = fingerprints
        return view

    @property
    def namespace(self) -> str:
        """Who: the application or tenant whose entries these are."""
        return self._namespace.settings.namespace

    @property
    def version(self) -> str:
        """Which: the version that is part of every key."""
        return self._fingerprints.version

    @property
    def policy(self) -> Policy:
        """The lifetimes of this cache."""
        return self._policy

    def fingerprint(self, request: object) -> str:
        """
        Return the digest of *request* under this version and scope, as ``entries`` lists it.

        Raises Uncacheable for a request that has no canonical form.
        """
        return self._digest(request, current()).decode()

    def bypass(self, reason: str) -> None:
        """Count a call that an adapter let pass without the cache, in ``stats().bypassed``, with its reason."""
        self._namespace.state.counters.add_reason("bypassed", reason)

    def reject(self, reason: str) -> None:
        """Count an answer that an adapter's admission refused, in ``stats().rejected``, with its reason."""
        self._namespace.state.counters.add_reason("rejected", reason)

    def __repr__(self) -> str:
        scope = "".join(f", {name}={value!r}" for name, value in self._fingerprints.scope.items())
        label = self._namespace.place.label
        return (
            f"{type(self).__name__}({label!r}, namespace={self.namespace!r}, version={self.version!r}{scope})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the configuration: another process, or a deep copy, connects for itself."""
        settings = self._namespace.settings
        if settings.client is not None:
            raise TypeError(f"{type(self).__name__} made from client= cannot be pickled; make it from a URL")
        arguments = (
            settings,
            self._policy,
            self._admit,
            self._fingerprints.version,
            self._fingerprints.scope,
        )
        return _remake, (type(self), *arguments)

    # --- for the two drivers ----------------------------------------------------------------------------------

    def _digest(self, request: object, control: Control) -> bytes:
        fingerprints = self._fingerprints if control is NONE else self._fingerprints.within(control.scope)
        return fingerprints.of(request)

    def _ask(self, request: object, **words: Any) -> Ask:
        control = current()
        return self._namespace.ask(self._digest(request, control), self._policy, control, **words)

    def _call(
        self,
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
        compute: Callable[[Sequence[int]], Any] | None = None,
        digests: Sequence[bytes] = (),
    ) -> Call:
        return Call(codec, admit or self._admit, None, compute, digests)

    def _stream_words(
        self,
        request: object,
        codec: Codec[Any] | None,
        admit: Admit | None,
        drain: Duration | Literal["followed"],
        fold: Callable[[list[Any]], Any] | None,
        on_served: Callable[[AnyServed], object] | None,
        **words: Any,
    ) -> Asked:
        wanted = self._ask(request, **words)
        call = self._call(codec, admit)
        call.streams, call.fold = True, fold
        while_followed = drain == "followed"
        bound = 0.0 if while_followed else seconds("drain", drain)
        return Asked(wanted, call, codec, bound, while_followed, on_served)

    def _digests(self, requests: Sequence[object], control: Control) -> tuple[list[bytes], list[int]]:
        """Return the distinct digests in order, and for each request the number of its digest."""
        places: dict[bytes, int] = {}
        numbers = [places.setdefault(self._digest(request, control), len(places)) for request in requests]
        return list(places), numbers

    def _asks(
        self, digests: Sequence[bytes], control: Control, served: Container[int] = (), **words: Any
    ) -> list[Ask]:
        """Return an Ask for each digest whose number is not *served*."""
        return [
            self._namespace.ask(digest, self._policy, control, index=number, **words)
            for number, digest in enumerate(digests)
            if number not in served
        ]

    def _each(
        self, requests: Sequence[object], count: int, labels: Sequence[str | None] | None, **words: Any
    ) -> list[Ask]:
        """Return an Ask for each of the *requests*; raise ConfigurationError if there are not *count* of each."""
        if len(requests) != count or (labels is not None and len(labels) != count):
            given = f"{len(requests)} requests, {count} values" + (
                f", {len(labels)} labels" if labels is not None else ""
            )
            raise ConfigurationError(
                f"{given} given: give one value for each request, and one label, or none"
            )
        return [
            self._ask(request, index=index, label=None if labels is None else labels[index], **words)
            for index, request in enumerate(requests)
        ]

    def _explained(self, request: object, other: object, wanted: Ask, generation: int | None) -> Explanation:
        body = request if isinstance(request, Request) else Request(PLAIN, request)
        key = None
        if generation is not None:
            key = (wanted.partition.names.e + b"%d:%b" % (generation, wanted.digest)).decode()
        return Explanation(
            namespace=self.namespace,
            version=self.version,
            scope={**self._fingerprints.scope, **current().scope},
            kind=body.kind,
            request=visible(body.body),
            fingerprint=wanted.digest.decode(),
            generation=generation,
            partition=wanted.partition.index,
            key=key,
            differences=() if other is None else tuple(differences(request, other)),
        )


def _remake(
    kind: type[V],
    settings: Settings,
    policy: Policy,
    admit: Admit | None,
    version: str,
    scope: dict[str, object],
) -> V:
    view = kind.__new__(kind)
    view._namespace, view._policy, view._admit = Namespace(settings), policy, admit
    view._fingerprints = Fingerprints(version, scope)
    return view


def memo_request(fn: Callable[..., Any], ignore: Sequence[str]) -> Callable[..., Request]:
    """Return what makes a request of a call of *fn*: its qualified name and its arguments, less the ignored ones."""
    name = getattr(fn, "__qualname__", "")
    if not name or name.endswith("<lambda>"):
        raise ConfigurationError(f"memoize: {fn!r} has no name of its own to be keyed by; give it a def")
    signature = inspect.signature(fn)
    if unknown := set(ignore) - set(signature.parameters):
        raise ConfigurationError(
            f"memoize: ignore={sorted(unknown)!r} names no parameter of {name}{signature}"
        )

    def request(*args: Any, **kwargs: Any) -> Request:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {key: value for key, value in bound.arguments.items() if key not in ignore}
        return Request("memoize", {"function": f"{fn.__module__}.{name}", "arguments": arguments})

    return functools.wraps(request)(request)
