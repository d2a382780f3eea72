"""Clients that write, hang up and are gone before they are accepted: they are taken many at a time, each as if it were alone."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.events import MAX_LINE_BYTES, Context, decode_events
from agent.queue import segment
from agent.queue.record import decode_record
from tests.support.edge import ACKS, Edge, edge, line, line_of
from tests.support.pipelines import DIRECTORY

pytestmark = pytest.mark.anyio
GITHUB = b'{"context":{"ci":"GITHUB_ACTIONS","interactive":0}}\n'
BAD = b"nonsense\n"


async def send_and_go(made: Edge, *messages: bytes) -> None:
    """Let each message be a client's whole life; the listener has no turn before all of them are gone."""
    for message in messages:
        with made.client() as client:
            assert client.fill(message) == len(message)


async def queued(made: Edge) -> list[tuple[Context, str]]:
    """Return what is queued: the context and the hash of each event, in order."""
    await made.settle()
    fs = made.host.fs
    paths = [path for path in fs.paths() if path.parent == DIRECTORY / "segments"]
    scans = [segment.scan(fs.read_bytes(path), segment.HEADER_BYTES, whole=True) for path in paths]
    records = [decode_record(frame.payload) for scan in scans for frame in scan.frames]
    return [(record.context, event.hash) for record in records for event in decode_events(record.lines)]


async def test_one_shot_clients_are_taken_together_without_a_connection(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        names = [f"h{number}" for number in range(100)]
        await send_and_go(made, *(line(name) for name in names))
        assert await queued(made) == [(Context(), name) for name in names]
        assert made.stream.connections == 0


async def test_a_last_line_without_an_end_is_not_glued_to_the_next_clients_first(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        await send_and_go(made, line("a")[:-1], b"", line("b") + line("c")[:-1], line("d"))
        assert [name for _, name in await queued(made)] == ["a", "b", "c", "d"]


async def test_a_context_holds_for_its_client_only(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        await send_and_go(made, GITHUB + line("g1"), line("p1"), GITHUB + line("g2"), line("p2"))
        github = Context("GITHUB_ACTIONS", 0)
        assert sorted(await queued(made), key=str) == sorted(
            [(github, "g1"), (github, "g2"), (Context(), "p1"), (Context(), "p2")], key=str
        )


async def test_a_bad_line_of_a_one_shot_client_costs_only_that_line(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with capture_logs() as logs:
            await send_and_go(made, line("a"), line("b") + BAD + line("c"), line("d"))
            assert sorted(name for _, name in await queued(made)) == ["a", "b", "c", "d"]
        assert made.intake.rejected == 1
        assert [entry["lines"] for entry in logs if entry["event"] == "lines_rejected"] == [1]


async def test_a_process_whose_connections_keep_others_waiting_is_named(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with capture_logs() as logs:
            await send_and_go(made, *([line()] * 700))
            assert len(await queued(made)) == 700
        (crowd,) = [entry for entry in logs if entry["event"] == "many_connections"]
        assert (crowd["uid"], crowd["pid"]) == (os.getuid(), os.getpid())


async def test_rubbish_of_short_connections_is_dismissed_without_a_task_each(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        await send_and_go(made, BAD * 1000)
        await made.settle()
        await send_and_go(made, *([BAD * 1000] * 50), BAD * 10 + line("good"))
        assert [name for _, name in await queued(made)] == ["good"]
        assert made.intake.rejected == 1000 + 50 * 1000 + 10


async def test_a_half_closed_client_gets_its_acks(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            client.fill(ACKS + line("a") + BAD)
            answers = await client.finish()
        assert (answers[-1]["durable"], answers[-1]["rejected"]) == (1, 1)
        assert answers[-1]["errors"][0]["line"] == 3


async def test_a_message_as_long_as_a_line_may_be_and_longer_ones_are_taken_whole(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        longest = line_of(MAX_LINE_BYTES)
        await send_and_go(made, longest, longest + line("more"), line("short"))
        assert len(await queued(made)) == 4
        assert made.intake.rejected == 0


async def test_datagrams_are_taken_together_and_each_as_if_it_were_alone(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            for message in (line("a")[:-1], GITHUB + line("g"), line("b") + BAD, line("c")):
                await sender.send(message)
        found = await queued(made)
        assert sorted(name for _, name in found) == ["a", "b", "c", "g"]
        assert [context.ci for context, name in found if name == "g"] == ["GITHUB_ACTIONS"]
        assert made.intake.rejected == 1
