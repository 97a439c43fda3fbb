"""What a run writes into the page."""

import pytest

from tests.benchmarks.peers.__main__ import BEGIN, END, written, zipf
from tests.benchmarks.peers.figures import Figure
from tests.benchmarks.peers.results import Results, table


@pytest.fixture
def results():
    """A run of four, one of which did not run."""
    found = Results("Redis 7.0", 5, base_us={"hit": 30.0, "ahit": 60.0, "at once": 50.0})
    for name in ("redis-py", "askonce", "dogpile.cache"):
        found.about[name] = {"asked by": "key", "note": "a note", "versions": {"redis": "8.1.0"}}
    found.absent["langchain-redis"] = "ResponseError: unknown command"
    return found


def row(results, name, *, number=0):
    """Return the cells of a peer in the table of that number."""
    lines = [line for line in results.markdown("today", "here").splitlines() if f" {name}" in line[:20]]
    return [cell.strip() for cell in lines[number].split("|")[2:-1]]


def test_a_cell_is_a_figure_or_a_word(results):
    """A feature that a peer lacks is named in the place of its figure."""
    results.note("hit", "dogpile.cache", Figure.of([1.234]))
    results.note("ahit", "dogpile.cache", "sync only")

    assert row(results, "dogpile.cache")[:3] == ["key", "1.23", "sync only"]


def test_a_peer_that_does_not_run_has_a_row_that_says_why(results):
    """It is in the first table, and in the last with the error and what it needs of a server."""
    assert row(results, "langchain-redis")[0] == "does not run here"
    assert row(results, "langchain-redis", number=1)[1] == (
        "does not run here: `ResponseError: unknown command`; it needs RedisJSON"
    )


def test_who_is_better_is_said(results):
    """With both figures; the baseline does not count, and a near tie is called one."""
    for name, value in {"redis-py": 1.0, "askonce": 1.2, "dogpile.cache": 1.1}.items():
        results.note("hit", name, Figure(value, value, value))
        results.note("ahit", name, Figure(value, value - 0.2, value + 0.2))

    assert (
        "- Better than `askonce` here: hit: dogpile.cache 1.10 (`askonce` 1.20); "
        "hit, asyncio: dogpile.cache 1.10 (within the spread of the rounds) (`askonce` 1.20)."
    ) in results.markdown("today", "here")


def test_nobody_is_better_by_less_than_the_table_shows(results):
    """Figures that are printed alike are no difference, and then it says none."""
    for name, value in {"askonce": 1.201, "dogpile.cache": 1.199}.items():
        results.note("hit", name, Figure.of([value]))

    assert "- Better than `askonce` here: none." in results.markdown("today", "here")


def test_counts_that_differ_are_told_from_the_least_to_the_most(results):
    """No half call reached a model."""
    results.note("stampede", "askonce", Figure.between([1, 1, 1]))
    results.note("stampede", "dogpile.cache", Figure.between([40, 1, 31]))

    assert [results.cell("stampede", name) for name in ("askonce", "dogpile.cache")] == ["1", "1 to 40"]


def test_an_outage_is_told_by_its_first_call_and_the_longest_of_the_others(results):
    """Who raised is told by the error, who did not come back in time by that."""
    results.endured("threads", "askonce", [(0.1, "miss"), (0.001, "miss"), (0.002, "hit")])
    results.endured("threads", "dogpile.cache", [(5.0, "TimeoutError")])
    results.endured("asyncio", "dogpile.cache", [])

    assert row(results, "**askonce**", number=2)[:2] == ["0.10 s, miss", "0.00 s, hit"]
    assert row(results, "dogpile.cache", number=2)[:3] == [
        "5.00 s, TimeoutError",
        "not within 10 s in all",
        "not within 10 s",
    ]


def test_a_bar_in_a_cell_ends_no_cell():
    """Errors hold any letter."""
    assert table(["a"], [["x|y"]])[-1] == r"| x\|y |"


def test_only_what_stands_between_the_markers_is_written():
    """The rest of the page stays, however often it is written."""
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    once = written(page, "new")

    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert written(once, "new") == once


def test_the_questions_are_the_same_in_every_run():
    """A few are popular."""
    trace = zipf(1_000, 100)

    assert trace == zipf(1_000, 100)
    assert trace.count(0) > 3 * trace.count(50)
