"""What a server sends beyond an answer is never taken for the answer to a later request: no refused event counts as delivered."""

import threading

import anyio
import anyio.to_thread
import pytest

from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.transport import Verdict
from tests.support.pipelines import batch_of, events
from tests.support.raw_server import Piece, RawServer
from tests.support.surplus import POISON, SURPLUS
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


async def verdicts(server: RawServer, pieces: list[Piece], later: threading.Event | None = None) -> list[Verdict]:
    """Send three batches, of which the first one is answered in these pieces, and the others are refused.

    The pieces behind `later` arrive between the first and the second one.
    """
    server.script(*pieces)
    found = []
    transport = HttpTransport(Endpoint(server.url, "token", timeout=HUNG_AFTER), wall_clock=lambda: 0.0)
    for name in "abc":
        found.append(await transport.send(batch_of(events(name))))
        if later is not None:
            later.set()
        await anyio.to_thread.run_sync(server.finished.wait, HUNG_AFTER)
    await transport.aclose()
    return found


def statuses(found: list[Verdict]) -> list[int | None]:
    return [verdict.status for verdict in found]


@pytest.mark.parametrize("kind", SURPLUS)
async def test_what_comes_with_an_answer_is_not_the_next_one(kind: str) -> None:
    answer, surplus = SURPLUS[kind]
    with RawServer(REFUSED) as server:
        found = await verdicts(server, [answer + surplus])
        assert statuses(found)[1:] == [503, 503], found
        assert len(server.requests) == 3
        assert server.accepted == 2


@pytest.mark.parametrize("kind", SURPLUS)
async def test_what_comes_while_the_connection_is_idle_is_not_the_next_answer(kind: str) -> None:
    answer, surplus = SURPLUS[kind]
    with RawServer(REFUSED) as server:
        later = threading.Event()
        found = await verdicts(server, [answer, later, surplus], later)
        assert statuses(found)[1:] == [503, 503], found
        assert len(server.requests) == 3
        assert server.accepted == 2


async def test_wherever_an_answer_and_its_surplus_are_split_the_next_request_is_answered_by_itself() -> None:
    """At each byte: within the answer both parts come at once, and later the second one comes while the connection is idle."""
    data = OK + POISON
    with RawServer(REFUSED) as server:
        for cut in range(1, len(data)):
            later = threading.Event()
            if cut < len(OK):
                later.set()
            found = await verdicts(server, [data[:cut], later, data[cut:]], later)
            assert statuses(found) == [200, 503, 503], (cut, found)
            assert server.accepted == 2, cut


async def test_a_connection_without_surplus_is_used_again() -> None:
    """Whatever the answer looks like: the tests above would pass as well if none was ever used twice."""
    with RawServer(REFUSED) as server:
        for answer, _ in SURPLUS.values():
            await verdicts(server, [answer])
            assert (len(server.requests), server.accepted) == (3, 1), answer
