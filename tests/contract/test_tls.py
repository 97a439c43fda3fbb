"""TLS: the same cache, on one server and on a cluster, and no cache at all for a certificate that nobody vouches for."""

import asyncio
import random
import shutil
import subprocess

import pytest
from tests.servers import Cluster, Server, promised

from askonce import AsyncCache, Source
from askonce._wire import line, multiplexed

from .polling import registered, until
from .upstream import Gate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A folder with a key and a certificate for 127.0.0.1 that vouches for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=askonce -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", folder / "key", "-out", folder / "cert"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def start(server, certificate):
    """Start a server, or a cluster, with TLS; skips if this one was built without."""
    made = []

    def start(kind):
        try:
            made.append(kind(promised()[server.name], name=server.name, tls=certificate))
        except RuntimeError as error:
            if "Failed finding TLS support" in str(error) or "'tls-port" in str(
                error
            ):  # the latter Redis 6.2
                pytest.skip(f"{server.name} was built without TLS")
            raise
        return made[-1]

    yield start
    for one in made:
        one.__exit__()


def works(driver, other):
    """Use the whole of it: hit, batch, flight elsewhere."""
    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert driver.lookup("q").source is Source.HIT
    assert driver.store_many(range(40), [f"v {number}" for number in range(40)]) == [True] * 40
    assert [one.value for one in other.get_many(range(40))] == [f"v {number}" for number in range(40)]
    gate = Gate()
    leading = driver.start("serve", "waited for", gate)
    gate.wait()
    following = other.start("serve", "waited for", lambda: "never")
    until(lambda: registered(other.cache._namespace))
    gate.open()
    assert (leading.result(10).value, following.result(10).value) == ("answer", "answer")
    assert driver.stats().fleet


def test_a_server_with_tls(start, make_driver, certificate):
    """rediss://, with a certificate that the URL vouches for."""
    port = start(Server).tls_port
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate / 'cert'}"

    works(make_driver(url, strict=True), make_driver(url, strict=True))


@pytest.mark.parametrize("made", [line.line, line.Slow])
async def test_long_answers_at_once(start, certificate, monkeypatch, made):
    """Asyncio reads them through the encrypting transport itself, or has redis-py read them: not a byte is lost."""
    monkeypatch.setattr(multiplexed, "line", made)
    port = start(Server).tls_port
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate / 'cert'}"
    answers = [random.Random(number).randbytes(100_000 * number) for number in range(6)]
    async with AsyncCache(url, namespace="test", strict=True, deadline=5) as cache:
        for number, answer in enumerate(answers):
            await cache.store(number, answer)
        for _ in range(5):
            found = await asyncio.gather(*[cache.lookup(number) for number in [*range(6), *range(6)]])
            assert [one.value for one in found] == [*answers, *answers]


def test_a_cluster_with_tls(start, make_driver):
    """rediss+cluster://: the nodes that it names are spoken to in the same way."""
    url = start(Cluster).url

    works(make_driver(url, strict=True), make_driver(url, strict=True))


def test_a_certificate_of_nobody_s(start, make_driver):
    """Not trusted, not used; the call is made without the cache."""
    events = []
    driver = make_driver(f"rediss://127.0.0.1:{start(Server).tls_port}/0", on_event=events.append)

    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert driver.lookup("q") is None
    assert "certificate" in events[0].reason.lower()
