"""The datagram listener over real sockets: what a datagram may hold, and that none that was sent is lost."""

import os
import socket
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from agent.events import MAX_LINE_BYTES, Context, decode_events
from agent.ingest import sockets
from agent.ingest.datagram import MAX_DATAGRAM_BYTES, DatagramListener
from agent.ingest.intake import Intake
from agent.ingest.sockets import BoundSocket
from agent.queue.record import decode_record
from agent.queue.segment import HEADER_BYTES, scan
from tests.support.edge import ACKS, Client, Edge, edge, line, line_of, turns
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio
CI = b'{"context":{"ci":"CIRCLECI"}}\n'


def queued(made: Edge) -> int:
    return made.pipeline.ledger().queued


def contexts(made: Edge) -> list[tuple[str, Context]]:
    """The hash and the context of every event on the disk."""
    fs = made.host.fs
    data = [fs.read_bytes(path) for path in fs.paths() if path.parent.name == "segments"]
    frames = [frame for each in data for frame in scan(each, HEADER_BYTES, whole=True).frames]
    records = [decode_record(frame.payload) for frame in frames]
    return [(event.hash, record.context) for record in records for event in decode_events(record.lines)]


async def test_a_datagram_is_one_or_more_lines_with_or_without_a_last_newline(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            await sender.send(line())
            await sender.send(line() * 3)
            await sender.send(line() + line()[:-1])
            await sender.send(b"[" + line()[:-1] + b"]")
        await made.settle()
        assert (queued(made), made.intake.rejected) == (7, 0)


async def test_a_context_holds_for_its_datagram_only(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            await sender.send(CI + line("with"))
            await sender.send(line("without"))
        await made.settle()
        assert contexts(made) == [("with", Context(ci="CIRCLECI")), ("without", Context())]


async def test_a_datagram_that_ends_in_mid_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            await sender.send(line() + line()[:30])
            await sender.send(line())
        await made.settle()
        assert (queued(made), made.intake.rejected) == (2, 1)


async def test_empty_datagrams_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            sender.socket.send(b"")
            await sender.send(b"\n\n")
            sender.socket.send(b"")
            await sender.send(line())
        await made.settle()
        assert (queued(made), made.intake.rejected) == (1, 0)


async def test_a_line_in_a_datagram_may_have_64_kib_and_not_a_byte_more(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            await sender.send(line_of(MAX_LINE_BYTES)[:-1])
            await sender.send(line_of(MAX_LINE_BYTES) + line())
            await sender.send(line_of(MAX_LINE_BYTES + 1) + line())
        await made.settle()
        assert (queued(made), made.intake.rejected) == (4, 1)


async def test_an_oversized_datagram_loses_only_the_line_that_is_cut(
    tmp_path: Path,
) -> None:
    async with edge(tmp_path) as made:
        block = line_of(999) * (MAX_DATAGRAM_BYTES // 1000 + 10)
        with made.sender() as sender:
            sender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            await sender.send(block)
            await sender.send(line())
        await made.settle()
        assert (queued(made), made.intake.rejected) == (MAX_DATAGRAM_BYTES // 1000 + 1, 1)


async def test_acks_are_not_sent_for_datagrams(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        made.host.gate.close()
        with made.sender() as sender:
            for _ in range(30):  # more than wait in a socket: they are being read
                await sender.send(ACKS + line())
        await made.datagram.catch_up()
        made.host.gate.open()
        await made.settle()
        assert queued(made) == 30


async def test_a_bad_line_is_logged_with_its_sender(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with capture_logs() as logged, made.sender() as sender:
            await sender.send(b"nonsense\n" + line())
            await made.settle()
        assert (queued(made), made.intake.rejected) == (1, 1)
        rejects = [each for each in logged if each["event"] == "lines_rejected"]
        assert [(each["uid"], each["pid"]) for each in rejects] == [(os.getuid(), os.getpid())]


async def test_datagrams_of_rubbish_take_turns_with_others(tmp_path: Path) -> None:
    block = b"{}\n" * 900 + line()
    async with edge(tmp_path) as made:
        with made.sender() as sender, made.client() as client:
            for _ in range(10):
                await sender.send(block)
            await client.send(ACKS + line())
            await client.settled(1)
            assert made.intake.rejected < 9000
            await made.settle()
        assert (made.intake.rejected, queued(made)) == (9000, 11)


async def test_a_datagram_of_nothing_but_rubbish_is_counted_without_a_look_at_each_line(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.sender() as sender:
            await sender.send(b"a\n" * 100_000)
            await sender.send(b"a\n" * 10_000 + line())
            await sender.send(line())
            await made.settle()
            await sender.send(b"a\n" + line())
            await made.settle()
        assert (made.intake.rejected, queued(made)) == (110_001, 3)


async def test_catch_up_ends_although_a_sender_never_stops(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:

        async def flood() -> None:
            with made.sender() as sender:
                while True:
                    await sender.send(b"\n")
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(flood)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
                with anyio.fail_after(HUNG_AFTER):
                    await made.datagram.catch_up()
            tasks.cancel_scope.cancel()


async def test_a_cancelled_catch_up_loses_no_datagram(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        await made.pipeline.commit_once()
        made.host.gate.close()
        block, sent = line(padding=1000) * 100, 0
        with made.sender() as sender:
            while await turns(lambda: sender.fill(block) > 0):  # until memory is full, and then the socket
                sent += 100
        with anyio.move_on_after(0.1) as scope:
            await made.datagram.catch_up()
        assert scope.cancelled_caught
        made.host.gate.open()
        await made.settle()
        assert queued(made) == sent


async def test_closing_takes_what_was_sent_and_lets_nobody_send_more(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        await made.pipeline.commit_once()
        made.host.gate.close()
        block, sent = line(padding=1000) * 100, 0
        with made.sender() as sender:
            while await turns(lambda: sender.fill(block) > 0):
                sent += 100
            await made.datagram.close()
            await anyio.wait_all_tasks_blocked()
            made.host.gate.open()
            await made.ended["datagram"].wait()
            with pytest.raises(OSError, match=r"Broken pipe|refused|not connected"):
                sender.socket.send(line())
        await made.pipeline.commit_once()
        assert queued(made) == sent
        assert not made.datagram_path.exists()
        await made.datagram.catch_up()


async def test_a_socket_that_systemd_keeps_keeps_what_comes_after_the_end(tmp_path: Path) -> None:
    async with edge(tmp_path) as made, anyio.create_task_group() as tasks:
        kept = sockets.bind(tmp_path / "kept.sock", sockets.DATAGRAM, mode=0o600)
        ours = BoundSocket(kept.socket.dup(), None)
        ours.socket.setblocking(False)
        listener = DatagramListener(ours, Intake({"default": made.pipeline}))
        tasks.start_soon(listener.serve)
        with Client(tmp_path / "kept.sock", socket.SOCK_DGRAM) as sender:
            await sender.send(line())
            await anyio.wait_all_tasks_blocked()
            await listener.catch_up()
            await listener.close()
            await anyio.wait_all_tasks_blocked()
            await sender.send(line("later"))
            assert kept.socket.recv(1000) == line("later")
        await made.settle()
        assert queued(made) == 1
        kept.release()
