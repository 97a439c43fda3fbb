"""Tags: labels by which entries are invalidated together, whatever their number."""

import pytest

from askonce import Cache, ConfigurationError, Policy, Source, control

from .colours import call_on
from .polling import age
from .upstream import Gate, counting


def test_a_tag_invalidates_its_entries_and_no_others(driver):
    """Entries with the tag are misses; the rest are hits."""
    driver.store("a", "a", tags=["docs", "v1"])
    driver.store("b", "b", tags=["docs"])
    driver.store("c", "c", tags=["code", "v1"])
    driver.store("d", "d")

    assert driver.invalidate_tag("docs") is True

    assert [driver.lookup(name) and driver.lookup(name).value for name in "abcd"] == [None, None, "c", "d"]
    driver.invalidate_tag("v1")
    assert [driver.lookup(name) and driver.lookup(name).value for name in "abcd"] == [None, None, None, "d"]


def test_every_process_sees_it_at_once(make_driver):
    """When invalidate_tag has returned, no other cache serves a tagged entry."""
    one, other = make_driver(), make_driver()
    one.store("q", "answer", tags=["t"])
    assert other.lookup("q").value == "answer"

    one.invalidate_tag("t")

    assert other.lookup("q") is None
    assert make_driver().lookup("q") is None


def test_every_path_respects_it(driver):
    """get_many, get_or_compute, get_or_compute_many and begin refuse a tagged entry as lookup does."""
    driver.store("q", "old", tags=["t"])
    driver.invalidate_tag("t")

    assert driver.get_many(["q"]) == [None]
    lease = driver.begin("q")
    assert not hasattr(lease, "value")
    call_on(driver, lease.finish, "begun")
    assert driver.lookup("q").value == "begun"
    driver.store("p", "old", tags=["t"])
    driver.invalidate_tag("t")
    assert driver.get_or_compute("p", lambda: "new") == "new"
    driver.store("r", "old", tags=["t"])
    driver.invalidate_tag("t")
    assert driver.get_or_compute_many(["r"], lambda missing: ["new"]) == ["new"]


def test_what_is_stored_after_it_is_served(driver):
    """A tag that was invalidated once is no ban: new entries with it are hits."""
    driver.store("q", "old", tags=["t"])
    driver.invalidate_tag("t")

    assert driver.get_or_compute("q", lambda: "new", tags=["t"]) == "new"
    assert driver.lookup("q").value == "new"
    driver.store("p", "stored", tags=["t"])
    assert driver.lookup("p").value == "stored"


def test_what_another_process_stores_after_it_is_served(make_driver):
    """A cache that has not heard of the invalidation yet stores an entry that is as new as any."""
    one, other = make_driver(), make_driver()
    other.store("warm", "up")

    one.invalidate_tag("t")
    assert other.store("q", "new", tags=["t"]) is True

    assert one.lookup("q").value == "new"
    assert other.lookup("q").value == "new"


def test_what_another_process_computes_after_it_is_served(make_driver):
    """The same through get_or_compute and get_or_compute_many."""
    one, other = make_driver(), make_driver()
    other.store("warm", "up")
    one.invalidate_tag("t")

    other.get_or_compute("q", lambda: "new", tags=["t"])
    other.get_or_compute_many(["p"], lambda _: ["new"], tags=["t"])

    assert one.lookup("q").value == one.lookup("p").value == "new"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_an_answer_computed_before_is_not_served_after(make_driver, elsewhere):
    """A computation under way when the tag is invalidated is stored too late: its answer is served to nobody else."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate("old")
    leading = driver.start("serve", "q", gate, tags=["t"])
    gate.wait()

    other.invalidate_tag("t")
    gate.open()

    assert leading.result(10).value == "old"
    assert driver.lookup("q") is None
    assert other.lookup("q") is None
    assert driver.get_or_compute("q", lambda: "new", tags=["t"]) == "new"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_lease_begun_before_is_not_served_after(make_driver, elsewhere):
    """The same for callers who compute by themselves, even if they name the tag only at the end."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    lease = driver.begin("q")

    other.invalidate_tag("t")
    call_on(driver, lease.finish, "old", tags=["t"])

    assert driver.lookup("q") is None
    assert other.lookup("q") is None


def test_who_asks_after_it_does_not_join_what_began_before(driver):
    """A caller that comes after the invalidation gets an answer computed after it."""
    gate = Gate("old")
    leading = driver.start("serve", "q", gate, tags=["t"])
    gate.wait()

    driver.invalidate_tag("t")
    following = driver.start("serve", "q", lambda: "new", tags=["t"])
    gate.open()

    assert leading.result(10).value == "old"
    assert following.result(10).value == "new"


def test_tags_of_the_block_add_to_those_of_the_call(url):
    """An entry carries the tags of control() and of the call."""
    with Cache(url, namespace="test") as cache:
        for doomed in ("outer", "inner", "call"):
            with control(tags=["outer"]), control(tags=["inner"]):
                cache.store(doomed, "answer", tags=["call"])
            assert cache.lookup(doomed).value == "answer"
            cache.invalidate_tag(doomed)
            assert cache.lookup(doomed) is None


def test_a_stale_answer_with_an_invalidated_tag_is_not_served(make_driver, raw):
    """Neither as stale nor in place of an error."""
    driver = make_driver(policy=Policy(ttl="1m", stale_while_revalidate="1h", stale_if_error="2h"))
    driver.store("q", "old", tags=["t"])
    age(raw, driver.explain("q").key, 90)
    assert driver.lookup("q").source is Source.STALE

    driver.invalidate_tag("t")

    assert driver.lookup("q") is None
    with pytest.raises(RuntimeError, match="quota"):
        driver.get_or_compute("q", counting(error=RuntimeError("quota"))[0])


def test_it_costs_the_same_for_any_number_of_entries(driver, raw):
    """Entries stay where they are, unreachable; the books know them until they are replaced or expire."""
    for number in range(20):
        driver.store(number, "answer", tags=["t"])
    keys = [driver.explain(number).key for number in range(20)]
    before = raw.info("commandstats").get("cmdstat_unlink", {}).get("calls", 0)

    driver.invalidate_tag("t")

    assert driver.get_many(range(20)) == [None] * 20
    assert raw.exists(*keys) == 20
    assert raw.info("commandstats").get("cmdstat_unlink", {}).get("calls", 0) == before


def test_a_lost_list_of_tags_serves_nothing_old(make_driver, raw, names):
    """Without the list nobody knows which tags it held: everything tagged before is refused, the rest is served."""
    one, other = make_driver(), make_driver()
    one.store("tagged", "answer", tags=["t"])
    one.store("plain", "answer")
    other.get_many(["tagged", "plain"])

    one.invalidate_tag("t")
    raw.delete(names.tv)

    assert other.lookup("tagged") is None
    assert other.lookup("plain").value == "answer"


def test_a_lost_list_that_is_written_anew_serves_nothing_old(make_driver, raw, names):
    """The same if another tag has been invalidated since, so that there is a list again."""
    one, other = make_driver(), make_driver()
    one.store("tagged", "answer", tags=["t"])
    assert other.lookup("tagged").value == "answer"

    one.invalidate_tag("t")
    raw.delete(names.tv)
    one.invalidate_tag("another")

    assert other.lookup("tagged") is None


def test_tags_beyond_those_kept_refuse_too_much_rather_than_too_little(make_driver, raw, names):
    """With ten thousand later invalidations the first is forgotten, and everything tagged before it is refused."""
    driver = make_driver()
    driver.store("tagged", "answer", tags=["t"])
    driver.store("plain", "answer")
    driver.invalidate_tag("t")
    generation, sequence = map(int, raw.get(names.c).split(b":"))
    raw.zadd(names.tv, {f"{number:016x}": sequence + number for number in range(1, 10_001)})
    raw.set(names.c, f"{generation}:{sequence + 10_000}")
    driver.store("later", "answer", tags=["t"])
    driver.lookup("later")
    driver.invalidate_tag("one more")

    fresh = make_driver()

    assert raw.zcard(names.tv) <= 10_001
    assert raw.zscore(names.tv, "#") is not None
    assert fresh.lookup("tagged") is None
    assert fresh.lookup("plain").value == "answer"


def test_one_text_is_one_tag(driver):
    """tags='docs' means the tag docs, not its letters."""
    driver.store("q", "answer", tags="docs")

    driver.invalidate_tag("d")
    assert driver.lookup("q").value == "answer"
    driver.invalidate_tag("docs")
    assert driver.lookup("q") is None


@pytest.mark.parametrize("tag", ["", 7, None])
def test_what_is_no_tag_is_refused(driver, tag):
    """A tag is text that is not empty."""
    with pytest.raises(ConfigurationError, match="tag"):
        driver.store("q", "answer", tags=[tag])
    with pytest.raises(ConfigurationError, match="tag"):
        driver.invalidate_tag(tag)


def test_an_entry_carries_up_to_255_tags(driver):
    """As many as fit are stored, each invalidates; one more is refused, and costs no answer."""
    tags = [f"tag {number}" for number in range(255)]
    assert driver.store("q", "answer", tags=tags)
    assert driver.lookup("q").value == "answer"
    driver.invalidate_tag("tag 254")
    assert driver.lookup("q") is None

    with pytest.raises(ConfigurationError, match="255"):
        driver.store("q", "answer", tags=[*tags, "one more"])
