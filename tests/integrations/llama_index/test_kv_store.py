"""What is particular to ``AskonceKVStore``: two kinds of collection, outages, round trips, loops, processes."""

from __future__ import annotations

import asyncio
import copy
import datetime
import enum
import logging
import pickle
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio

pytest.importorskip("llama_index.core")

from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, TextNode, TransformComponent
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from tests.conftest import every_server  # noqa: F401  a fixture
from tests.contract.polling import until

from askonce import BackendUnavailable, Cache, ConfigurationError, Uncacheable
from askonce._wire import held
from askonce_llama_index import AskonceKVStore

CACHE, DATA = "llama_cache", "docstore/data"


@pytest.fixture
def raw(url):
    """A plain client on the database of the test: a stranger to the store."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def calls(request):
    """Call a method of a store in one colour: ``calls(store, "get", key, collection)``."""

    def call(store, name, *args, **kwargs):
        if request.param == "sync":
            return getattr(store, name)(*args, **kwargs)
        return asyncio.run(getattr(store, f"a{name}")(*args, **kwargs))

    return call


def store_on(url, **options):
    """A store that a busy machine does not disturb."""
    return AskonceKVStore(url, **{"deadline": 5.0, **options})


# --- two kinds of collection --------------------------------------------------------------------------------------


def test_only_cache_collections_expire(calls, url, raw):
    """The lifetime is that of the constructor; data has none."""
    store = store_on(url, ttl=60, cache_collections=[CACHE, "mine"])
    for collection in (CACHE, "mine"):
        calls(store, "put", "k", {"v": 1}, collection=collection)
    lives = [raw.ttl(key) for key in raw.scan_iter("*:e:*") if raw.type(key) == "string"]
    assert len(lives) == 2
    assert all(0 < life <= 60 for life in lives)
    raw.flushall()
    for collection in (DATA, "docstore/ref_doc_info", "index_store/data", "data", "embeddings"):
        calls(store, "put", "k", {"v": 1}, collection=collection)
    assert {raw.ttl(key) for key in raw.scan_iter("*")} == {-1}
    assert raw.dbsize() == 5 * 2


def test_an_expired_entry_is_gone_and_not_listed(calls, url):
    """A get of it, and get_all, find nothing."""
    store = store_on(url, ttl="40ms")
    calls(store, "put", "k", {"v": 1}, CACHE)
    until(lambda: calls(store, "get", "k", CACHE) is None)
    assert calls(store, "get_all", CACHE) == {}


def test_the_bound_evicts_cache_entries_and_no_data(calls, url):
    """The least recently used of the cache make room; data is not counted."""
    store = store_on(url, max_entries=3)
    for number in range(10):
        calls(store, "put", f"k{number}", {"v": number}, CACHE)
        calls(store, "put", f"k{number}", {"v": number}, DATA)
    assert set(calls(store, "get_all", CACHE)) == {"k7", "k8", "k9"}
    assert len(calls(store, "get_all", DATA)) == 10
    assert store.cache.usage().entries == 3


def test_emptying_the_cache_leaves_data_alone(calls, url):
    store = store_on(url)
    for collection in (CACHE, DATA):
        calls(store, "put", "k", {"v": 1}, collection)
    store.cache.clear()
    assert calls(store, "get", "k", CACHE) is None
    assert calls(store, "get", "k", DATA) == {"v": 1}


def test_collections_and_namespaces_are_apart(calls, url):
    """None lists or serves what is another's, whatever the names look like; versions are those of the cache alone."""
    names = ["a", "a/b", "b", "a}:", "", "a:i"]
    for kind in ("cache", "data"):
        caches = [name for name in names if name] if kind == "cache" else []
        one = store_on(url, namespace="one", cache_collections=caches)
        for number, name in enumerate(names):
            calls(one, "put", "k", {"v": number}, name)
        for number, name in enumerate(names):
            assert calls(one, "get_all", name) == {"k": {"v": number}}
        other = store_on(url, namespace="two", cache_collections=caches)
        assert [calls(other, "get_all", name) for name in names] == [{}] * 6
        newer = store_on(url, namespace="one", cache_collections=caches, version="2")
        expected = {} if kind == "cache" else {"k": {"v": 0}}
        assert calls(newer, "get_all", "a") == expected


def test_other_entries_of_the_namespace_are_not_listed(calls, url):
    """Answers that share the namespace, even if somebody labelled them alike."""
    store = store_on(url)
    store.cache.store("question", "answer", label=f"{CACHE}/{'0' * 40}")
    calls(store, "put", "k", {"v": 1}, CACHE)
    assert calls(store, "get_all", CACHE) == {"k": {"v": 1}}


def test_the_last_value_of_a_key_stays(calls, url):
    for collection in (CACHE, DATA):
        store = store_on(url)
        calls(store, "put_all", [("k", {"v": 1}), ("k", {"v": 2})], collection)
        assert calls(store, "get_all", collection) == {"k": {"v": 2}}


# --- values -------------------------------------------------------------------------------------------------------


class Kind(str, enum.Enum):  # noqa: UP042  as LlamaIndex has it
    """An enumeration whose members are text, as ``ObjectType`` is."""

    TEXT = "1"


@pytest.mark.parametrize("collection", [CACHE, DATA])
def test_values_come_back_as_json_has_them(calls, url, collection):
    """Floats to the last bit; what is text to JSON is text; what MessagePack has no form of too."""
    (single,) = struct.unpack("<f", struct.pack("<f", 0.1))
    values = {
        "floats": {"v": [0.1, 1 / 3, single, -0.0, 1e308, 5e-324]},
        "enumeration": {"__type__": Kind.TEXT},
        "tuple": {"v": (1, 2)},
        "keys": {1: {"v": None}},
        "big": {"v": 2**80},
        "surrogate": {"v": "\ud800"},
        "\ud800": {"v": "\u2603"},
        "k" * 5000: {"nested": [{"v": [[]]}, True, None, ""]},
    }
    expected = {
        **values,
        "enumeration": {"__type__": "1"},
        "tuple": {"v": [1, 2]},
        "keys": {"1": {"v": None}},
    }
    store = store_on(url)
    calls(store, "put_all", list(values.items()), collection)
    assert {key: calls(store, "get", key, collection) for key in values} == expected
    assert calls(store, "get_all", collection) == expected
    assert type(calls(store, "get", "enumeration", collection)["__type__"]) is str


def test_data_that_is_no_json_is_refused_whole(calls, url, raw):
    """The error names the key, and nothing of that call is written."""
    store = store_on(url)
    with pytest.raises(Uncacheable, match="the value of 'bad' is not JSON: Object of type date"):
        calls(store, "put_all", [("good", {"v": 1}), ("bad", {"v": datetime.date(2025, 1, 1)})], DATA)
    assert raw.dbsize() == 0


def test_a_cache_passes_over_what_is_no_json(calls, url, caplog):
    """No call fails: the others are stored, the refusal is counted, and logged once."""
    store = store_on(url)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "askonce.llama_index"):
            calls(store, "put_all", [("good", {"v": 1}), ("bad", {"v": datetime.date(2025, 1, 1)})], CACHE)
    assert calls(store, "get_all", CACHE) == {"good": {"v": 1}}
    assert store.cache.stats().rejection_reasons == {"uncacheable": 2}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("collection", [CACHE, DATA])
def test_a_key_is_text(calls, url, collection):
    with pytest.raises(TypeError, match="the key 7 is int: give text"):
        calls(store_on(url), "put", 7, {"v": 1}, collection)


def test_what_others_wrote_there_is_no_value(calls, url, raw):
    """Data raises; a cache has nothing."""
    store = store_on(url)
    calls(store, "put", "k", {"v": 1}, DATA)
    (name,) = raw.scan_iter("*:v:*")
    for text in ("{", "7", '{"a": 1}'):
        raw.set(name, text)
        with pytest.raises(ValueError, match="was not written by AskonceKVStore"):
            calls(store, "get", "k", DATA)
        with pytest.raises(ValueError, match="was not written by AskonceKVStore"):
            calls(store, "get_all", DATA)
    calls(store, "put", "k", {"v": 1}, CACHE)
    (name,) = (key for key in raw.scan_iter("*:e:*") if raw.type(key) == "string")
    raw.setrange(name, raw.strlen(name) - 7, "7" * 7)  # all of the pair
    assert calls(store, "get", "k", CACHE) is None
    assert calls(store, "get_all", CACHE) == {}


# --- outages ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["killed", "frozen", "full"])
def broken(request, own_server):
    """The URL of a server that is of no use."""
    if request.param == "full":
        return own_server("--maxmemory", "1", "--maxmemory-policy", "noeviction").url
    server = own_server()
    getattr(server, {"killed": "kill", "frozen": "freeze"}[request.param])()
    return f"{server.url}?socket_timeout=0.2"


def test_a_cache_forgives(calls, broken):
    """What is read is missing, what is written is lost, and nothing is raised."""
    store = AskonceKVStore(broken)
    calls(store, "put", "k", {"v": 1}, CACHE)
    calls(store, "put_all", [("k", {"v": 1})], CACHE)
    assert calls(store, "get", "k", CACHE) is None
    assert calls(store, "get_all", CACHE) == {}
    assert calls(store, "delete", "k", CACHE) is False


def test_a_strict_cache_raises(calls, broken):
    with pytest.raises(BackendUnavailable):
        calls(AskonceKVStore(broken, strict=True), "put", "k", {"v": 1}, CACHE)


def test_data_raises(calls, broken, request):
    """A write that is lost in silence is corruption, and so is a document that seems not to be there."""
    store = AskonceKVStore(broken)
    with pytest.raises(BackendUnavailable, match="could not write the collection 'docstore/data'"):
        calls(store, "put", "k", {"v": 1}, DATA)
    if "full" in request.node.name:
        assert calls(store, "get", "k", DATA) is None  # a full server still answers
        return
    for name, *args in (["get", "k"], ["get_all"], ["delete", "k"]):
        with pytest.raises(BackendUnavailable):
            calls(store, name, *args, collection=DATA)


def test_a_batch_of_data_is_written_whole_or_not(own_server):
    """However little room is left: a value that the index does not list would be there and not be found."""
    server = own_server("--maxmemory-policy", "noeviction")
    store, refused = store_on(server.url), 0
    with redis.Redis.from_url(server.url) as raw:
        for room in range(0, 400_000, 4_000):
            raw.config_set("maxmemory", raw.info("memory")["used_memory"] + room)
            try:
                store.put_all([(f"{room}-{i}", {"v": "x" * 500}) for i in range(50)], DATA)
            except BackendUnavailable:
                refused += 1
            listed = store.get_all(DATA)
            assert len(listed) % 50 == 0
            assert len(listed) == len(raw.keys("*:v:*"))
    assert refused > 0
    assert listed  # in the end there was room


class Killing(TransformComponent):
    """Ends the server of the test in the middle of a pipeline."""

    def __call__(self, nodes, **kwargs):
        servers.pop().kill()
        return nodes


servers = []


def test_redis_killed_in_the_middle_of_a_pipeline(own_server):
    """The pipeline ends as without a cache; when Redis is back, it is used again."""
    server = own_server()
    servers.append(server)
    cache = IngestionCache(cache=AskonceKVStore(server.url, deadline=0.5))
    split = SentenceSplitter(tokenizer=str.split)
    documents = [Document(text="one. two.")]
    broken = IngestionPipeline(transformations=[split, Killing(), Upper()], cache=cache)
    assert [node.text for node in broken.run(documents=documents)] == ["ONE. TWO."]
    server.start()
    mended = IngestionPipeline(transformations=[split, Upper()], cache=cache)

    def served():
        worked.clear()
        mended.run(documents=documents)
        return not worked

    until(served)


def test_data_is_written_again_when_redis_is_back(calls, own_server):
    """With the connections that it broke: nothing has to be made anew."""
    server = own_server()
    store = store_on(server.url)
    calls(store, "put", "k", {"v": 1}, DATA)
    server.kill()
    with pytest.raises(BackendUnavailable):
        calls(store, "put", "k", {"v": 2}, DATA)
    server.start()
    calls(store, "put", "k", {"v": 3}, DATA)
    assert calls(store, "get", "k", DATA) == {"v": 3}


# --- what it costs ------------------------------------------------------------------------------------------------


@pytest.fixture
def writes(monkeypatch):
    """Counts what this thread writes to sockets, a round trip each; stores of earlier tests may have threads yet."""
    counted, mine = [], threading.get_ident()

    def counting(kind, name):
        send = getattr(kind, name)

        def counted_send(self, *args, **kwargs):
            if threading.get_ident() == mine:
                counted.append(mine)
            return send(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, counted_send)

    counting(redis.connection.AbstractConnection, "send_packed_command")
    counting(redis.asyncio.connection.AbstractConnection, "send_packed_command")
    counting(held.Direct, "exchange")
    return counted


def test_round_trips_of_data(url, writes):
    """One for each 500 written; one for the list and one for each 1000 read; one for each other call."""
    store = store_on(url)
    store.get("warm", DATA)

    def trips(name, *args):
        writes.clear()
        getattr(store, name)(*args, collection=DATA)
        return len(writes)

    assert trips("put", "k", {"v": 1}) == 1
    assert trips("put_all", [(f"k{i}", {"v": "y" * 200}) for i in range(5000)]) == 10
    assert trips("get_all") == 1 + 6  # 5001 values
    assert trips("get", "k") == 1
    assert trips("delete", "k") == 1
    assert trips("put_all", [(f"k{i}", {"v": "y" * (1 << 20)}) for i in range(8)]) == 3  # at most 4 MB each
    assert trips("put_all", []) == 0


def test_round_trips_of_a_cache(url, writes):
    """One for each 128 written, which is the core's bound; one a get or a put, three a delete."""
    store = store_on(url)
    store.put_all([(f"k{i}", {"v": "y" * 200}) for i in range(500)], CACHE)  # connects, loads the script

    def trips(name, *args):
        writes.clear()
        getattr(store, name)(*args, collection=CACHE)
        return len(writes)

    assert trips("put_all", [(f"k{i}", {"v": "y" * 200}) for i in range(2500)]) == 20
    assert trips("put", "k", {"v": 1}) == 1
    assert trips("get", "k") == 1
    trips("delete", "k0")  # loads the script
    assert trips("delete", "k") == 3
    assert trips("get", "k") == 1


# --- threads, loops, processes ------------------------------------------------------------------------------------


async def _both(store, key):
    for collection in (CACHE, DATA):
        await store.aput(key, {"v": key}, collection)
    return [await store.aget_all(collection) for collection in (CACHE, DATA)]


def test_three_loops_one_after_the_other(url):
    """One store, three ``asyncio.run``."""
    store = store_on(url)
    for number in range(3):
        found = asyncio.run(_both(store, str(number)))
    assert found == [{str(number): {"v": str(number)} for number in range(3)}] * 2


def test_a_loop_inside_a_loop(url):
    """``asyncio_run`` of LlamaIndex starts one in a thread; the outer one goes on afterwards."""
    store = store_on(url)

    async def outer():
        await _both(store, "before")
        asyncio_run(_both(store, "inside"))
        return await _both(store, "after")

    assert [set(found) for found in asyncio.run(outer())] == [{"before", "inside", "after"}] * 2


def test_threads_and_tasks_share_a_store(url):
    """Eight threads, each with a loop of twenty tasks."""
    store = store_on(url)

    async def tasks(thread):
        await asyncio.gather(*[_both(store, f"{thread}-{number}") for number in range(20)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda thread: asyncio.run(tasks(thread)), range(8)))
    assert [len(store.get_all(collection)) for collection in (CACHE, DATA)] == [160, 160]


def test_waiting_for_data_leaves_the_threads_of_a_loop_to_others(own_server):
    """Forty reads wait for a frozen server, and what else runs in threads (the resolution of names) goes on."""
    server = own_server()
    store = store_on(server.url)

    async def reading():
        reads = [asyncio.create_task(store.aget("k", DATA)) for _ in range(40)]
        await asyncio.sleep(0)  # each is begun
        await asyncio.to_thread(lambda: None)
        assert not any(read.done() for read in reads)
        server.thaw()
        return await asyncio.gather(*reads)

    server.freeze()
    assert asyncio.run(reading()) == [None] * 40


FORKING = """
import asyncio, os, sys
from askonce_llama_index import AskonceKVStore

store = AskonceKVStore(sys.argv[1], deadline=5.0)

async def use(key):
    for collection in ("llama_cache", "docstore/data"):
        await store.aput(key, {"v": key}, collection)
        assert await store.aget(key, collection) == {"v": key}

asyncio.run(use("before"))
child = os.fork()
asyncio.run(use("parent" if child else "child"))
if not child:
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, *(sorted(store.get_all(collection)) for collection in ("llama_cache", "docstore/data")))
"""


def test_a_forked_process_uses_what_its_parent_used(url):
    """Both at the same time, each with connections and threads of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split(" ", 1) == [
        "0",
        f"{['before', 'child', 'parent']} {['before', 'child', 'parent']}\n",
    ]


def test_a_pickled_store_is_the_same_store(calls, url):
    """Its configuration travels: collections, lifetime, namespace; so it does in a deep copy."""
    store = store_on(url, namespace="mine", ttl="1h", cache_collections=["mine"])
    for copied in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        calls(copied, "put", "k", {"v": 1}, "mine")
        calls(copied, "put", "k", {"v": 2}, CACHE)  # data, here
        assert calls(store, "get", "k", "mine") == {"v": 1}
        assert calls(store, "get", "k", CACHE) == {"v": 2}
        assert copied.cache.policy.ttl == 3600.0


# --- clients of the user's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [False, True])
def test_a_client_of_the_users_is_used(calls, url, decoding):
    """Whether it decodes or not, for both kinds."""
    with redis.Redis.from_url(url, decode_responses=decoding) as client:
        store = store_on(None, client=client)
        for collection in (CACHE, DATA):
            calls(store, "put", "\u2603", {"v": "\u2603"}, collection)
            assert calls(store, "get_all", collection) == {"\u2603": {"v": "\u2603"}}
            assert calls(store, "delete", "\u2603", collection) is True
        with pytest.raises(TypeError, match="made from client= cannot be pickled; make it from a URL"):
            pickle.dumps(store)


def test_the_environment_names_the_server(url, monkeypatch):
    """It is asked when the store is made: a worker elsewhere finds the same server."""
    monkeypatch.setenv("ASKONCE_URL", url)
    store = AskonceKVStore(deadline=5.0)
    monkeypatch.delenv("ASKONCE_URL")
    pickle.loads(pickle.dumps(store)).put("k", {"v": 1}, DATA)
    assert store_on(url).get("k", DATA) == {"v": 1}


def test_the_embedded_server_keeps_data(tmp_path):
    """Like any other: also for the workers of a pipeline."""
    store = AskonceKVStore(f"embedded://{tmp_path}")
    store.put("k", {"v": 1}, DATA)
    assert pickle.loads(pickle.dumps(store)).get("k", DATA) == {"v": 1}


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/main"])
def test_where_no_data_is_kept(url):
    """The error comes with the first use of such a collection, and says what to do."""
    store = AskonceKVStore(url)
    with pytest.raises(ConfigurationError, match=r"'docstore/data' is data.*cache_collections="):
        store.put("k", {"v": 1}, DATA)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://x"}, "url 'http://x' is not understood"),
        ({"url": Cache("redis://x")}, "url is Cache; give text"),
        ({"url": "redis://x", "client": redis.Redis()}, "both url and client="),
        ({"client": redis.asyncio.Redis()}, "client= is redis.asyncio.client.Redis; give a redis.Redis"),
        ({"ttl": None}, "ttl=None is no duration"),
        ({"ttl": 0}, "ttl=0"),
        ({"policy": None}, "policy= given.*give ttl="),
        ({"namespace": "a b"}, "namespace='a b'"),
        ({"cache_collections": "mine"}, "cache_collections='mine' is one text; give a list of names"),
        ({"cache_collections": 7}, "cache_collections: 7 is no name"),
        ({"cache_collections": [""]}, "cache_collections: '' is no name"),
        ({"cache_collections": ["x" * 1001]}, "is no name; give text of 1 to 1000 characters"),
        ({"cache_collections": ["\ud800"]}, "is no name"),
        ({"deadline": "soon"}, "deadline='soon' is no duration"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments, words):
    """With what was given and what is allowed."""
    with pytest.raises(ConfigurationError, match=words):
        AskonceKVStore(**arguments)


def test_no_password_is_shown(own_server):
    """Not in errors, nor in what the store says of itself."""
    server = own_server()
    server.kill()
    store = AskonceKVStore(server.url.replace("//", "//:never-shown@"))
    with pytest.raises(BackendUnavailable) as raised:
        store.get("k", DATA)
    assert "never-shown" not in f"{raised.value} {raised.value.__cause__} {store!r} {store.cache!r}"


# --- in LlamaIndex ------------------------------------------------------------------------------------------------

worked: list[str] = []


class Upper(TransformComponent):
    """Writes a text in capitals, and notes that it did; in a file too, which processes share."""

    log: str = ""

    def __call__(self, nodes, **kwargs):
        worked.extend(node.text for node in nodes)
        if self.log:
            with open(self.log, "a") as file:
                file.write("".join(f"{node.text}\n" for node in nodes))
        return [TextNode(text=node.text.upper(), metadata=node.metadata) for node in nodes]


class Lengths(BaseEmbedding):
    """Embeds a text as its length, and notes each text."""

    def _get_query_embedding(self, query):
        worked.append(query)
        return [len(query) / 3, 0.1]

    _get_text_embedding = _get_query_embedding

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)


@pytest.fixture(autouse=True)
def _nothing_worked_yet():
    worked.clear()
    yield
    servers.clear()


def _documents():
    return [
        Document(text=f"Document {number}. It has two sentences.", id_=str(number)) for number in range(4)
    ]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_second_run_of_a_pipeline_does_no_work(url, colour):
    """In another store and another pipeline, as another process has them; what it returns is the same."""

    def run():
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(tokenizer=str.split), Upper(), Lengths()],
            cache=IngestionCache(cache=store_on(url)),
        )
        worked.clear()
        if colour == "sync":
            nodes = pipeline.run(documents=_documents())
        else:
            nodes = asyncio.run(pipeline.arun(documents=_documents()))
        return [(node.text, node.embedding, node.metadata) for node in nodes]

    first = run()
    assert len(worked) == 8  # four texts, written in capitals and embedded
    assert run() == first
    assert worked == []


def test_two_workers_share_what_they_did(url, tmp_path):
    """Spawned processes: the second run does no work in any of them, and none is left to this process."""
    log = tmp_path / "worked"

    def run(documents):
        pipeline = IngestionPipeline(
            transformations=[Upper(log=str(log))], cache=IngestionCache(cache=store_on(url))
        )
        return [node.text for node in pipeline.run(documents=documents, num_workers=2)]

    first = run(_documents())
    assert len(log.read_text().splitlines()) == 4
    assert run(_documents()) == first
    assert len(log.read_text().splitlines()) == 4
    assert worked == []


def test_documents_that_did_not_change_are_not_ingested_again(url):
    """A document store and the ingestion cache in one store: data and cache side by side."""

    def run(documents):
        store = store_on(url)
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(tokenizer=str.split), Lengths()],
            cache=IngestionCache(cache=store),
            docstore=KVDocumentStore(store, batch_size=100),
            vector_store=SimpleVectorStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS,
        )
        worked.clear()
        return [node.ref_doc_id for node in pipeline.run(documents=documents)]

    documents = _documents()
    assert run(documents) == ["0", "1", "2", "3"]
    assert run(documents) == []
    documents[2].set_content("Another text.")
    assert run(documents) == ["2"]
    assert worked == ["Another text."]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_embeddings_are_computed_once(url, colour):
    """Texts and queries, one by one and in batches; to the last bit; in another model object too."""

    async def aembedded(model):
        return [
            await model.aget_text_embedding_batch(["a", "bb"]),
            await model.aget_text_embedding("ccc"),
            await model.aget_query_embedding("dddd"),
        ]

    def embedded():
        model = Lengths(embeddings_cache=store_on(url, namespace="lengths"))
        if colour == "async":
            return asyncio.run(aembedded(model))
        return [
            model.get_text_embedding_batch(["a", "bb"]),
            model.get_text_embedding("ccc"),
            model.get_query_embedding("dddd"),
        ]

    expected = [[[1 / 3, 0.1], [2 / 3, 0.1]], [1.0, 0.1], [4 / 3, 0.1]]
    assert embedded() == expected
    assert sorted(worked) == ["a", "bb", "ccc", "dddd"]
    assert embedded() == expected
    assert len(worked) == 4


def test_embeddings_outlive_redis(broken):
    """Each text is embedded, and no call fails."""
    model = Lengths(embeddings_cache=AskonceKVStore(broken))
    assert model.get_text_embedding_batch(["a", "bb"]) == [[1 / 3, 0.1], [2 / 3, 0.1]]
    assert asyncio.run(model.aget_query_embedding("a")) == [1 / 3, 0.1]


def test_an_empty_store_is_used_and_does_not_change_a_pipeline_hash(url):
    """``BaseEmbedding`` asks for the truth of its cache; the hash of a pipeline holds the store's default form."""
    assert not hasattr(AskonceKVStore, "__len__")
    hashes = {
        get_transformation_hash([TextNode(text="x")], Lengths(embeddings_cache=store_on(url)))
        for _ in range(3)
    }
    assert len(hashes) == 1
