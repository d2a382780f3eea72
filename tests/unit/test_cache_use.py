"""What events say of the cache: counted as a person would count them, at a small part of what validation costs."""

from hypothesis import given
from hypothesis import strategies as st

from agent.cache_use import NO_USE, CacheUse, count_use
from agent.events import Block, Context, Event, Session, decode_events, decode_lines, encode_events
from agent.ingest.cache_uses import NO_CI, OTHER_CI, CacheUses
from tests.support.cache_use import use_of
from tests.support.recordings import Recorded

EVENTS = st.builds(
    Event,
    session_id=st.sampled_from(["s", '","source":"REMOTE","event":"HIT","hash":"', "REMOTE"]),
    source=st.sampled_from(["LOCAL", "REMOTE"]),
    event=st.sampled_from(["HIT", "MISS"]),
    hash=st.sampled_from(["h", "HIT", '"event":"HIT"']),
    duration=st.integers(0, 2**63 - 1) | st.sampled_from([0.5, 1e300]),
)


@given(st.lists(EVENTS, max_size=20))
def test_events_are_counted_as_a_naive_reader_counts_them(events: list[Event]) -> None:
    lines = encode_events(events)
    assert count_use(events) == use_of(lines)
    assert [block.use for block in decode_lines(lines, Session()).blocks] == ([use_of(lines)] if events else [])


def test_a_duration_that_is_left_out_or_is_that_of_a_miss_saves_nothing() -> None:
    without, missed = Event("s", "LOCAL", "HIT", "h"), Event("s", "REMOTE", "MISS", "h", 7)
    assert count_use([without]) == CacheUse(local_hits=1)
    assert count_use([missed]) == CacheUse(remote_misses=1)
    assert count_use([without, missed]) == CacheUse(local_hits=1, remote_misses=1)


def test_recorded_requests_are_counted_as_a_naive_reader_counts_them(recorded_requests: list[Recorded]) -> None:
    for recorded in recorded_requests:
        lines = encode_events(recorded.events)
        assert count_use(decode_events(lines)) == use_of(lines)


def test_what_a_client_calls_its_ci_system_makes_no_series() -> None:
    uses = CacheUses()
    assert uses.by_ci == {NO_CI: NO_USE}
    for number in range(1000):
        uses.add(f"mine-{number}", CacheUse(local_hits=1))
    uses.add("GITHUB_ACTIONS", CacheUse(remote_hits=2, remote_saved=3))
    uses.add("GITHUB_ACTIONS", CacheUse(remote_hits=2, remote_saved=3))
    uses.add(None, CacheUse(local_misses=1))
    assert uses.by_ci == {
        NO_CI: CacheUse(local_misses=1),
        OTHER_CI: CacheUse(local_hits=1000),
        "GITHUB_ACTIONS": CacheUse(remote_hits=4, remote_saved=6),
    }


def test_events_that_are_queued_again_say_nothing_new() -> None:
    assert Block(Context(), 1, b"{}\n").use == NO_USE
