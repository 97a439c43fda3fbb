"""The blocks of the documentation run on one server."""

from tests.servers import one_server  # noqa: F401  a fixture
