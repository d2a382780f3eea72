"""The stream listener over real sockets: the protocol, what clients may do to it, and what none of them may lose."""

import fcntl
import os
import resource
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from agent.events import MAX_LINE_BYTES
from agent.ingest import sockets
from agent.ingest.cache_uses import NO_CI
from agent.ingest.intake import Intake
from agent.ingest.sockets import BoundSocket
from agent.ingest.stream import MAX_UNCOMMITTED, READ_BYTES, StreamListener
from tests.support.edge import ACKS, Client, Edge, edge, line, line_of, turns
from tests.support.pipelines import balanced
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio
BAD = b"nonsense\n"


def queued(made: Edge) -> int:
    return made.pipeline.ledger().queued


def unread(client: Client) -> int:
    """How many bytes of what a client wrote nobody has read yet."""
    return int(struct.unpack("i", fcntl.ioctl(client.socket, termios.TIOCOUTQ, b"\0" * 4))[0])


# Protocol


async def test_events_arrays_and_contexts_are_taken_line_by_line(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            array = b"[" + line()[:-1] + b"," + line()[:-1] + b"]\n"
            await client.send(ACKS + line() + array + b'{"context":{"ci":"GITHUB_ACTIONS","interactive":1}}\n' + line())
            assert await client.settled(4) == {"durable": 4, "rejected": 0}
        assert queued(made) == 4


async def test_without_acks_nothing_is_written_to_the_client(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(line() + BAD + b'{"context":{"ack":"none"}}\n' + line())
            assert await client.finish() == []
        await made.settle()
        assert (queued(made), made.intake.rejected) == (2, 1)


async def test_acks_are_cumulative_and_name_the_first_rejects(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(ACKS + line() * 2)
            assert await client.settled(2) == {"durable": 2, "rejected": 0}
            await client.send(b'{"context":{"ci":7}}\n' + line())
            answer = await client.settled(4)
            assert (answer["durable"], answer["rejected"]) == (3, 1)
            assert [error["line"] for error in answer["errors"]] == [4]
            await client.send(line())
            assert await client.answer() == {"durable": 4, "rejected": 1}


async def test_after_half_close_the_unterminated_line_counts_and_the_last_ack_comes(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(ACKS + line() + line()[:-1])
            assert (await client.finish())[-1] == {"durable": 2, "rejected": 0}
        assert queued(made) == 2


async def test_a_line_may_have_64_kib_and_not_a_byte_more(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            exact, over = line_of(MAX_LINE_BYTES), line_of(MAX_LINE_BYTES + 1)
            await client.send(ACKS + exact + over + exact + line())
            answer = await client.settled(4)
            assert (answer["durable"], answer["rejected"]) == (3, 1)
            assert answer["errors"] == [{"line": 3, "reason": "Line is longer than 65,536 bytes"}]
        assert queued(made) == 3


async def test_an_unterminated_last_line_has_the_same_limit(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as exact, made.client() as over:
            await exact.send(ACKS + line_of(MAX_LINE_BYTES)[:-1])
            assert (await exact.finish())[-1] == {"durable": 1, "rejected": 0}
            await over.send(ACKS + line_of(MAX_LINE_BYTES + 1)[:-1])
            answer = (await over.finish())[-1]
            assert (answer["durable"], answer["rejected"]) == (0, 1)


async def test_after_ten_megabytes_without_a_newline_the_next_line_is_taken(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(ACKS + b"x" * 10_000_000 + b"\n" + line())
            answer = await client.settled(2)
            assert (answer["durable"], answer["rejected"], answer["errors"][0]["line"]) == (1, 1, 2)
        assert made.intake.rejected == 1


async def test_lines_cut_at_any_byte_arrive_whole(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            for byte in ACKS + line() + BAD + line():
                await client.send(bytes([byte]))
                await anyio.lowlevel.checkpoint()
            answer = await client.settled(3)
            assert (answer["durable"], answer["rejected"]) == (2, 1)


async def test_during_a_commit_a_client_that_asked_for_acks_is_read_so_far_ahead_and_answered_no_sooner(
    tmp_path: Path,
) -> None:
    async with edge(tmp_path) as made:
        made.host.gate.close()
        with made.client() as client:
            await client.send(ACKS)
            assert await turns(lambda: not unread(client))
            block, count, written = line() * 2000, 20, 0

            async def write() -> None:
                nonlocal written
                for _ in range(count):
                    await client.send(block)
                    written += len(block)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                assert not await turns(lambda: written == count * len(block))
                ahead = sum(made.intake.cache_uses.by_ci[NO_CI][:4]) * len(line())
                assert READ_BYTES < ahead <= MAX_UNCOMMITTED * READ_BYTES
                with pytest.raises(BlockingIOError):
                    client.socket.recv(1)
                made.host.gate.open()
                assert await client.settled(count * 2000) == {"durable": count * 2000, "rejected": 0}
        assert queued(made) == count * 2000


# Clients that vanish or do not read


async def test_a_client_that_vanishes_in_mid_line_loses_only_that_line(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(line() + line()[:20])
        await made.settle()
        assert (queued(made), made.intake.rejected, made.stream.connections) == (1, 1, 0)


async def test_a_client_that_vanishes_without_reading_its_acks_loses_nothing(tmp_path: Path) -> None:
    """Writing the ack fails, and closing with unread acks resets the connection: neither may cost what was written."""
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(ACKS + line())
            await made.settle()  # an ack is there to be read
            whole, rest = divmod(client.fill(line() * 5000), len(line()))
        await made.settle()
        assert await turns(lambda: made.stream.connections == 0)
        assert (queued(made), made.intake.rejected) == (1 + whole, int(rest > 0))
        assert whole * len(line()) > MAX_LINE_BYTES  # more than one read


async def test_an_unterminated_last_line_counts_even_when_the_acks_are_not_read(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:
            await client.send(ACKS + line())
            await made.settle()
            await client.send(line()[:-1])
        await made.settle()
        assert (queued(made), made.intake.rejected) == (2, 0)


async def test_a_client_that_never_reads_acks_is_evicted_and_loses_nothing(tmp_path: Path) -> None:
    async with edge(tmp_path, max_connections=1) as made:
        with made.client() as deaf:
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await deaf.send(ACKS)
            sent = 0
            while not unread(deaf):  # until the acks fill its buffer, and then what it writes fills the other
                await deaf.send(line())
                sent += 1
                await turns(lambda: not unread(deaf))
            with made.client() as other:
                await other.send(ACKS + line())
                assert await other.settled(1) == {"durable": 1, "rejected": 0}
            with pytest.raises(BrokenPipeError):
                deaf.fill(line())
        await made.settle()
        assert queued(made) == sent + 1


# Limits


async def test_the_idlest_connection_makes_room_and_what_it_wrote_is_taken(tmp_path: Path) -> None:
    async with edge(tmp_path, max_connections=2) as made:
        with capture_logs() as logged, made.client() as idle, made.client() as busy:
            await idle.send(ACKS + line())
            await idle.settled(1)
            await busy.send(ACKS + line())
            await busy.settled(1)
            await idle.send(line()[:-1])
            await made.settle()
            await busy.send(line())
            await busy.settled(2)
            with made.client() as third:
                await third.send(ACKS + line())
                await third.settled(1)
                assert await idle.answer() == {"durable": 2, "rejected": 0}
                assert await idle.answer() is None
                await busy.send(line())
                await busy.settled(3)
                assert made.stream.connections == 2
        assert made.stream.evicted == 1
        evictions = [each for each in logged if each["event"] == "connection_evicted"]
        assert [(each["uid"], each["pid"], each["suppressed"]) for each in evictions] == [(os.getuid(), os.getpid(), 0)]
        assert "more than 2 connections" in evictions[0]["reason"]


async def test_a_crowd_within_a_small_limit_loses_nothing_that_it_could_write(tmp_path: Path) -> None:
    async with edge(tmp_path, max_connections=3) as made:
        written = 0
        for number in range(300):
            with made.client() as client:
                written += client.fill(line()) == len(line())
            if number % 50 == 0:
                await anyio.lowlevel.checkpoint()
        await made.settle()
        assert queued(made) == written == 300


async def test_a_client_gets_its_ack_while_a_thousand_connections_say_nothing(tmp_path: Path) -> None:
    async with edge(tmp_path, max_connections=8) as made:
        silent = []
        try:
            for _ in range(500):
                silent.append(made.client())
                await anyio.lowlevel.checkpoint()
            with made.client() as client, anyio.fail_after(HUNG_AFTER):
                await client.send(ACKS + line())
                assert await client.settled(1) == {"durable": 1, "rejected": 0}
            assert made.stream.connections <= 8
        finally:
            for each in silent:
                each.close()


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_when_files_run_out_the_idlest_connection_makes_room(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as idle, made.client() as client, capture_logs() as logged:
            await idle.send(ACKS + line())
            await idle.settled(1)
            await made.stream.catch_up()
            with Client(made.stream_path) as late:
                await client.send(ACKS)
                with no_more_files():
                    await late.send(ACKS + line())
                    await late.settled(1)
                    assert await idle.answer() is None
        assert queued(made) == 2
        assert {"cannot_accept", "connection_evicted"} <= {each["event"] for each in logged}


async def test_rubbish_is_taken_in_smaller_turns_than_events(tmp_path: Path) -> None:
    """A block of bad lines costs a hundred times what good ones do: others get their turn in between."""
    block = (b"{}\n" * 100 + line()) * 200  # none of it can be counted unseen
    async with edge(tmp_path) as made:
        with made.client() as rubbish, made.client() as client:
            rubbish.fill(block)
            await client.send(ACKS + line())
            await client.settled(1)
            assert made.intake.rejected < 10_000
        await made.settle()
        assert (made.intake.rejected, made.pipeline.ledger().queued) == (20_000, 201)


async def test_of_many_connections_of_a_process_one_has_its_bad_lines_looked_at_in_a_turn(tmp_path: Path) -> None:
    bad = b"{}\n" * 300
    async with edge(tmp_path) as made:
        with ExitStack() as clients:
            for _ in range(32):
                assert clients.enter_context(made.client()).fill(bad) == len(bad)
            most = 0
            while made.intake.rejected < 32 * 300:
                before = made.intake.rejected
                await anyio.lowlevel.checkpoint()
                most = max(most, made.intake.rejected - before)
            assert most <= 2 * 300


async def test_while_the_disk_hangs_writes_wait_and_then_are_dropped_and_counted(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        await made.pipeline.commit_once()
        made.host.gate.close()
        block, clients = line(padding=1000) * 200, [made.client() for _ in range(40)]
        written = [0] * len(clients)

        async def flood(index: int) -> None:
            for _ in range(2):
                await clients[index].send(block)
                written[index] += 200

        async with anyio.create_task_group() as floods:
            for index in range(len(clients)):
                floods.start_soon(flood, index)
        for client in clients:
            client.close()
        await made.stream.catch_up()
        shed = made.pipeline.ledger().dropped["stalled"]
        assert 0 < shed < sum(written) == 16_000
        made.host.gate.open()
        await made.settle()
        assert queued(made) == sum(written) - shed
        assert balanced(made.pipeline)


# Catching up and closing


async def test_catch_up_includes_clients_not_yet_accepted(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        for _ in range(50):
            with made.client() as client:
                client.fill(line())
        await made.settle()
        assert queued(made) == 50


async def test_catch_up_ends_although_a_client_never_stops_writing(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as client:

            async def flood() -> None:
                while True:
                    await client.send(line() * 100)
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flood)
                for _ in range(3):
                    await anyio.lowlevel.checkpoint()
                    with anyio.fail_after(HUNG_AFTER):
                        await made.stream.catch_up()
                tasks.cancel_scope.cancel()


async def test_catch_up_ends_when_a_connection_does(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        made.host.gate.close()
        with made.client() as client:
            client.fill(ACKS + line())
            async with anyio.create_task_group() as tasks:
                with anyio.fail_after(HUNG_AFTER):
                    tasks.start_soon(made.stream.catch_up)
                    await anyio.lowlevel.checkpoint()
                    client.close()
                    made.host.gate.open()
        await made.settle()
        assert queued(made) == 1


async def test_a_cancelled_catch_up_loses_no_connection(tmp_path: Path) -> None:
    async with edge(tmp_path, max_connections=1) as made:
        made.host.gate.close()
        clients = [made.client() for _ in range(6)]
        for client in clients:
            client.fill(ACKS + line())
        for _ in range(8):
            with anyio.move_on_after(0.01):
                await made.stream.catch_up()
        made.host.gate.open()
        for client in clients:
            assert (await client.finish())[-1] == {"durable": 1, "rejected": 0}
            client.close()
        assert queued(made) == 6


async def test_closing_reads_what_was_written_and_lets_nobody_write_more(tmp_path: Path) -> None:
    async with edge(tmp_path) as made:
        with made.client() as known, made.client() as waiting:
            await known.send(ACKS + line())
            await known.settled(1)
            waiting.fill(ACKS + line())
            known.fill(line() + line()[:-1])
            await made.stream.close()
            await made.ended["stream"].wait()
            assert await known.settled(3) == {"durable": 3, "rejected": 0}
            assert await waiting.settled(1) == {"durable": 1, "rejected": 0}
            with pytest.raises(OSError, match="Broken pipe"):
                known.fill(line())
        assert queued(made) == 4
        assert not made.stream_path.exists()
        await made.stream.catch_up()


async def test_closing_takes_a_backlog_larger_than_the_limit(tmp_path: Path) -> None:
    async with edge(tmp_path, max_connections=1) as made:
        clients = [made.client() for _ in range(20)]
        for client in clients:
            client.fill(line())
        await made.stream.close()
        await made.ended["stream"].wait()
        await made.pipeline.commit_once()
        assert queued(made) == 20
        for client in clients:
            client.close()


async def test_a_socket_of_a_job_alone_is_read_to_the_end_of_its_backlog(tmp_path: Path) -> None:
    async with edge(tmp_path) as made, anyio.create_task_group() as tasks:
        kept = sockets.bind(tmp_path / "kept.sock", sockets.STREAM, mode=0o600)
        ours = BoundSocket(kept.socket.dup(), None)
        ours.socket.setblocking(False)
        for number in range(100):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "kept.sock"))
                client.sendall(line(f"h{number}"))
        listener = StreamListener(ours, Intake({"default": made.pipeline}), 8)
        await listener.close()
        tasks.start_soon(listener.serve)
        await made.pipeline.wait_for_capacity()
        while made.pipeline.ledger().accepted < 100:
            await anyio.lowlevel.checkpoint()
        kept.release()


async def test_a_socket_that_systemd_keeps_stays_open_with_its_backlog(tmp_path: Path) -> None:
    async with edge(tmp_path) as made, anyio.create_task_group() as tasks:
        kept = sockets.bind(tmp_path / "kept.sock", sockets.STREAM, mode=0o600)
        ours = BoundSocket(kept.socket.dup(), None, outlives=True)
        ours.socket.setblocking(False)
        listener = StreamListener(ours, Intake({"default": made.pipeline}), 8)
        tasks.start_soon(listener.serve)
        with Client(tmp_path / "kept.sock") as first:
            await first.send(ACKS + line())
            await first.settled(1)
            await listener.close()
            assert await first.answer() is None
        with Client(tmp_path / "kept.sock") as second:
            second.fill(line())
            accepted, _ = kept.socket.accept()
            with accepted:
                assert accepted.recv(1000) == line()
        kept.release()
