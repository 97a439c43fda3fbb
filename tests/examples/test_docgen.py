"""The documentation generator: its parts by hand, and one small run of the whole."""

import ast
import io
from random import Random

import pytest
from examples.docgen.__main__ import main
from examples.docgen.demo import Settings, run
from examples.docgen.numbers import Meters, percentile, result, total, usd
from examples.docgen.plan import ROUNDS, deal, jobs_for
from examples.docgen.records import Call, Kind
from examples.docgen.report import summary, table
from examples.docgen.sources import WorkingTree, add_a_comment, rename_a_variable
from examples.docgen.stopwatch import question_of
from examples.standin import start
from rich.console import Console

from askonce import Source

CODE = '''def doubled(values):
    """Twice each."""
    total = []
    for value in values:
        total.append(2 * value)
    return total'''


@pytest.fixture
def tree(tmp_path):
    return WorkingTree.of_standard_library(tmp_path / "code")


def test_functions_are_collected_from_every_file(tree):
    """Real functions, with their source, none twice."""
    functions = tree.functions(28)
    assert len({(function.path, function.name) for function in functions}) == 28
    assert len({function.path for function in functions}) == 8
    assert all(ast.parse(function.code) for function in functions)
    assert "dedent" in {function.name for function in tree.functions(1000)}


def test_reading_again_changes_nothing(tree):
    functions = tree.functions(28)
    assert functions == tree.as_they_are_now(functions)


@pytest.mark.parametrize("seed", range(10))
def test_an_edit_changes_the_hash_of_what_was_edited_and_of_nothing_else(tree, seed):
    """Three files with two changed functions each at most, and one that changed outside its functions."""
    before = tree.functions(28)
    texts = {path.name: path.read_text() for path in tree.root.iterdir()}
    said = tree.edit(Random(seed), before)
    after = tree.as_they_are_now(before)
    changed = {new.name for old, new in zip(before, after, strict=True) if old.sha != new.sha}
    assert changed == {line.rpartition(" ")[2] for line in said if " in " in line}
    assert 3 <= len(changed) <= 6
    assert sum(path.read_text() != texts[path.name] for path in tree.root.iterdir()) == 4
    assert all(ast.parse(path.read_text()) for path in tree.root.iterdir())


def test_a_variable_is_renamed_wherever_it_stands():
    code, how = rename_a_variable(CODE)
    assert how == "total renamed to total_"
    assert code == CODE.replace("total", "total_")


def test_an_argument_is_no_variable():
    assert rename_a_variable("def same(value):\n    value = value\n    return value") is None


def test_a_comment_stands_before_the_last_statement():
    assert add_a_comment(CODE) == CODE.replace("    return", "    # Reviewed.\n    return")


def test_uses_are_found_as_whole_words(tree):
    assert "textwrap.py" in tree.uses("dedent")
    assert tree.uses("dede") == "no line mentions dede"


def test_every_job_is_dealt_to_two_workers():
    """And no worker gets one twice."""
    hands = deal(range(50), 4, Random(1))
    assert sorted([*range(50), *range(50)]) == sorted(job for hand in hands for job in hand)
    assert all(len(hand) == len(set(hand)) for hand in hands)
    assert [sorted(range(5))] == [sorted(hand) for hand in deal(range(5), 1, Random(1))]


def test_a_question_has_another_name_when_its_code_or_its_prompt_changes(tree):
    (first, *_), (again, *_) = (jobs_for(tree.functions(1), version) for version in ("v1", "v2"))
    assert question_of(first) != question_of(again)
    assert question_of(first) == question_of(jobs_for(tree.functions(1), "v1")[0])


def call(source, seconds, question="q", tokens=(1000, 100)):
    return Call(Kind.CHAIN, question, source, seconds, *tokens)


def meters(reached, entries=0, bytes=0):
    return Meters(reached=reached, refused=0, entries=entries, bytes=bytes)


CALLS = (
    call(Source.COMPUTED, 0.5, "a"),
    call(Source.COMPUTED, 0.3, "b"),
    call(Source.COALESCED, 0.4, "b"),
    call(Source.HIT, 0.002, "a"),
    call(Source.HIT, 0.001, "c"),
)


def played(calls=CALLS, before=10, after=12):
    return result(
        "round", calls, failures=(), seconds=1.0, before=meters(before), after=meters(after, 7, 4096)
    )


def test_a_round_adds_up():
    """What each number means, on five calls."""
    round_ = played()
    assert (round_.asked, round_.reached, round_.hits, round_.coalesced) == (5, 2, 2, 1)
    assert (round_.questions, round_.new_questions) == (3, 2)
    assert round_.hit_ms == pytest.approx([2, 1])
    assert round_.miss_ms == pytest.approx([500, 300])
    assert round_.tokens_saved == 3 * 1100
    assert round_.usd_saved == pytest.approx(3 * usd(1000, 100))
    assert (round_.entries, round_.bytes) == (7, 4096)


def test_rounds_add_up():
    both = total([played(), played(calls=CALLS[3:], before=12, after=12)])
    assert (both.asked, both.reached, both.hits, both.coalesced) == (7, 2, 4, 1)
    assert (both.seconds, both.entries, both.bytes) == (2.0, 7, 4096)


def test_percentiles_are_values_that_occurred():
    """Nearest rank; of nothing there is none."""
    assert percentile(range(1, 101), 50) == 50
    assert percentile(range(1, 101), 95) == 95
    assert percentile([3], 95) == 3
    assert percentile([1, 2], 50) == 1
    assert percentile([], 50) is None


def test_a_million_tokens_cost_what_the_price_list_says():
    assert usd(1_000_000, 0) == pytest.approx(0.40)
    assert usd(0, 1_000_000) == pytest.approx(1.60)


def test_the_table_fits_a_log_and_the_summary_takes_two_lines():
    """88 columns at most; nothing is cut short."""
    out = io.StringIO()
    Console(file=out, width=88).print(table([played()] * 4, live=False))
    assert "…" not in out.getvalue()
    assert "-" not in out.getvalue().partition("miss, ms")[2].splitlines()[0]
    out = io.StringIO()
    Console(file=out, width=80).print(summary([played()]))
    assert len(out.getvalue().strip().splitlines()) == 2


def test_live_needs_a_key(monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["--live"]) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err


def test_a_redis_that_is_not_there_is_said_in_one_line(capsys):
    assert main(["--quick", "--url", "redis://127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "redis://127.0.0.1:1" in line


@pytest.mark.slow
def test_the_whole_demo_in_small(tmp_path):
    """Round 2 never reaches the model, the edited round does for what was edited, the bump for everything."""
    out = io.StringIO()
    settings = Settings(workers=2, functions=8, latency=(0.01, 0.03), error_rate=0.05, out=tmp_path)
    results = run(settings, Console(file=out, width=100))
    cold, again, edited, bumped = results
    assert [each.title for each in results] == [each.title for each in ROUNDS]
    assert [each.failures for each in results] == [()] * 4
    assert again.reached == 0
    assert again.hits == again.asked == 3 * cold.asked
    assert 0 < edited.new_questions < edited.questions
    assert cold.new_questions == cold.questions == bumped.new_questions == bumped.questions
    for each in results:
        # The stand-in's own count: what the application calls computed is what the provider saw.
        assert each.reached == sum(call.computed for call in each.calls)
        plain = [call for call in each.calls if call.kind is Kind.PLAIN and call.computed]
        assert len(plain) == len({call.question for call in plain})
    assert bumped.entries >= cold.questions + bumped.questions
    assert len(list(tmp_path.glob("*.md"))) == 8


@pytest.mark.slow
def test_live_asks_the_provider_that_the_environment_names(monkeypatch, capsys):
    """Here the stand-in again, by OPENAI_BASE_URL; the calls that reached it are counted by us, and rightly."""
    with start(latency=(0.0, 0.01), error_rate=0.0) as standin:
        monkeypatch.setenv("OPENAI_BASE_URL", standin.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "a-key-that-is-never-shown")
        assert main(["--live", "--quick"]) == 0
        calls = standin.stats().calls
    out, err = capsys.readouterr()
    (reached,) = [line for line in out.splitlines() if line.startswith(" reached the model ")]
    assert int(reached.split()[-1]) == calls
    assert "a-key-that-is-never-shown" not in out + err
