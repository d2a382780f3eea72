"""Records that something else wrote, with text that is no events: each line is sent, judged by the API and accounted for."""

from typing import Any

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.transport import Kind, Verdict
from agent.events import Block, Event, encode_events
from tests.support import virtual_time
from tests.support.fake_transport import FakeTransport
from tests.support.json_array import to_json_array
from tests.support.pipelines import PLAIN, balanced, dead_letters, event, host, submit

pytestmark = pytest.mark.anyio

GOOD = encode_events([event("good")])
REFUSED = "400 Bad Request: these are no events"


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class SchemaTransport(FakeTransport):
    """Refuses what is no array of events, as the API does."""

    async def send(self, batch: Batch) -> Verdict:
        """See `Transport`."""
        try:
            assert msgspec.json.decode(to_json_array(batch.lines), type=list[Event])
        except (ValueError, AssertionError):
            return Verdict(Kind.REJECTED, REFUSED, 400)
        return await super().send(batch)


@pytest.mark.parametrize("split_sessions", [False, True])
@pytest.mark.parametrize(
    ("lines", "good", "bad"),
    [
        pytest.param(b"x\n" + GOOD + b"\xff\n", ["good"], [b"x\n", b"\xff\n"], id="not JSON"),
        pytest.param(b"\n" + GOOD + b"\n", ["good"], [b"\n", b"\n"], id="blank lines"),
        pytest.param(b"{}\n" + GOOD + b"null\n", ["good"], [b"{}\n", b"null\n"], id="not events"),
        pytest.param(GOOD + b"]\n[\n", ["good"], [b"]\n", b"[\n"], id="brackets"),
        pytest.param(GOOD + GOOD[:-2] + b"\n}\n", ["good"], [GOOD[:-2] + b"\n", b"}\n"], id="an event on two lines"),
        pytest.param(GOOD[:-1] + GOOD + GOOD + b"\n", ["good"], [GOOD[:-1] + GOOD, b"\n"], id="two events on a line"),
    ],
)
async def test_a_record_with_foreign_text_costs_its_bad_lines_and_stops_nothing(
    lines: bytes, good: list[str], bad: list[bytes], split_sessions: bool
) -> None:
    async with host() as h:
        h.options = BatchOptions(split_sessions=split_sessions)
        h.transport = transport = SchemaTransport()
        pipeline = h.start()
        await submit(pipeline, ["before"]).wait()
        await pipeline.submit(Block(PLAIN, 3, lines)).wait()
        await submit(pipeline, ["after"]).wait()
        with anyio.fail_after(3600):
            await pipeline.flush()
        assert sorted(transport.taken) == sorted(["before", *good, "after"])
        letters = sorted(dead_letters(h.fs), key=lambda letter: letter.seq)
        assert [letter.line for letter in letters] == bad
        assert {letter.message for letter in letters} == {REFUSED}
        assert pipeline.ledger().queued == 0
        assert balanced(pipeline)


async def test_a_dead_letter_with_foreign_text_is_told_and_survives() -> None:
    async with host() as h:
        h.transport = SchemaTransport()
        pipeline = h.start()
        with capture_logs() as logs:
            await pipeline.submit(Block(PLAIN, 1, b"\xff\x1b[2J\n")).wait()
            await pipeline.flush()
        (told,) = [entry for entry in logs if entry["event"] == "event_dead_lettered"]
        assert (told["seq"], told["message"]) == (1, REFUSED)
        await h.kill()
        assert [letter.line for letter in dead_letters(h.fs)] == [b"\xff\x1b[2J\n"]
        assert (pipeline.ledger().dead_lettered, pipeline.ledger().queued) == (1, 0)


@pytest.mark.parametrize("line", [b"x\n", b"{}\n", b"\n", b"\xff\n", GOOD.replace(b"good", b"\xff"), GOOD[:-1] + GOOD])
async def test_a_dead_letter_whose_line_is_no_event_says_so(line: bytes) -> None:
    async with host() as h:
        h.transport = SchemaTransport()
        pipeline = h.start()
        await pipeline.submit(Block(PLAIN, 1, line)).wait()
        await pipeline.flush()
        (letter,) = dead_letters(h.fs)
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            _ = letter.event


async def test_the_body_of_a_request_is_the_text_that_was_kept() -> None:
    bodies: list[bytes] = []

    class Recorder(FakeTransport):
        async def send(self, batch: Batch) -> Verdict:
            bodies.append(to_json_array(batch.lines))
            return await super().send(batch)

    async with host() as h:
        h.transport = Recorder()
        pipeline = h.start()
        lines = encode_events([Event("s", "LOCAL", "MISS", "\u2028\r\n,", 1e300), Event("t", "REMOTE", "HIT", "h")])
        await pipeline.submit(Block(PLAIN, 2, lines)).wait()
        await pipeline.flush()
        assert bodies == [to_json_array(lines)]
