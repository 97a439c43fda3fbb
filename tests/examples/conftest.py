"""The examples are run from the root of the repository, as their users do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.servers import one_server  # noqa: F401  a fixture
