"""
The drift audit as a test: see ``drift``.

Short by default: the essential scenarios, three seconds each.  ``ASKONCE_DRIFT_SECONDS=20`` runs all of them for that
long.  Four mistakes that somebody could make in the scripts show that the audit would find them.
"""

import os

import pytest

from . import drift

SECONDS = float(os.environ.get("ASKONCE_DRIFT_SECONDS", "3"))
SCENARIOS = drift.ALL if "ASKONCE_DRIFT_SECONDS" in os.environ else drift.ESSENTIAL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.title.replace(" ", "-"))
def test_the_books_never_drift(own_server, crew, scenario):
    """Counted is summed in every audit, both books hold the same members, bounds hold, and in the end all is zero."""
    found = drift.audit(crew, own_server(), scenario, SECONDS)

    print(f"\n{found}")
    assert found.problems == []


@pytest.mark.parametrize("mutation", drift.MUTATIONS, ids=lambda name: name.replace(" ", "-"))
def test_a_mistake_in_the_scripts_is_found(own_server, server, crew, mutation):
    """The audit fails for each of the mutations, within seconds."""
    if server.name != "valkey":
        pytest.skip("the mutants need one server only")
    found = drift.audit(crew, own_server(), drift.MUTATIONS[mutation][1], 1.0, mutation, lives=0.5)

    print(f"\n{mutation}: {'; '.join(found.problems)}")
    assert found.problems != []


def test_the_control_of_the_mutants_is_sound(own_server, server, crew):
    """Without a mutation, the scenario in which books are lost under load heals completely."""
    if server.name != "valkey" or drift.LOST in SCENARIOS:
        pytest.skip("it runs once")
    found = drift.audit(crew, own_server(), drift.LOST, 1.0, lives=0.2)

    print(f"\n{found}")
    assert found.problems == []
