"""The benchmark's own parts are tested on one server."""

from tests.servers import one_server  # noqa: F401  a fixture
