"""Intake: what becomes of each line, what the client is told, and what happens when the disk is slow or gone."""

import errno
import json
from collections.abc import Iterable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from agent.ingest.framing import Lines
from agent.ingest.intake import NAMED_REJECTS, PATIENCE, ClientState, Intake
from agent.peers import Peer
from agent.queue.committer import MAX_PENDING_BYTES, STALL_SECONDS
from agent.queue.store import Limits
from agent.rules import DEFAULT, Rule, Rules
from tests.support import virtual_time
from tests.support.edge import ACKS, GatedHost, line
from tests.support.fault_filesystem import failing, no_errors
from tests.support.pipelines import balanced
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio
PEER = Peer(pid=4711, uid=1234)
BAD = b"nonsense\n"
NO_ACKS = b'{"context":{"ack":"none"}}\n'


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Time passes at once."""
    return virtual_time.backend(request.param)


def lines(block: bytes, oversized: int = 0) -> Lines:
    return Lines(block, oversized)


def answered(client: ClientState) -> dict[str, Any] | None:
    answer = client.next_ack()
    value: dict[str, Any] | None = json.loads(answer) if answer is not None else None
    return value


def client_of(_: int) -> ClientState:
    return ClientState(PEER)


async def taken(intake: Intake, blocks: Iterable[Lines], *, answerable: bool = True) -> ClientState:
    client = ClientState(PEER, answerable)
    for block in blocks:
        await intake.submit(block, client)
        await client.wait_committed()
    return client


async def test_without_acks_nothing_is_ever_answered() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        intake = Intake({"default": host.start()})
        client = await taken(intake, [lines(line() + BAD), lines(b"", 1)])
        assert client.next_ack() is None
        assert intake.rejected == 2
        tasks.cancel_scope.cancel()


async def test_events_have_the_weight_of_their_senders_rule() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        rules = Rules([Rule(DEFAULT, uid=frozenset({PEER.uid}), weight=3)])
        intake, weights = Intake({DEFAULT: host.start()}, rules), []
        for uid in (PEER.uid, 1):
            client = ClientState(Peer(pid=1, uid=uid))
            await intake.submit(lines(ACKS + line()), client)
            weights += [each.submission.weight for each in client.uncommitted]
            await client.wait_committed()
        assert weights == [3, 1]
        tasks.cancel_scope.cancel()


async def test_durable_acks_count_up_and_are_not_repeated() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        intake, client = Intake({"default": pipeline}), ClientState(PEER)
        await intake.submit(lines(ACKS + line() * 3), client)
        await client.wait_committed()
        assert answered(client) == {"durable": 3, "rejected": 0}
        assert client.next_ack() is None
        await intake.submit(lines(b"\n \n"), client)
        assert client.next_ack() is None
        await intake.submit(lines(line()), client)
        await client.wait_committed()
        assert answered(client) == {"durable": 4, "rejected": 0}
        assert pipeline.ledger().accepted == 4
        await intake.submit(lines(NO_ACKS + line()), client)
        assert client.next_ack() is None
        tasks.cancel_scope.cancel()


async def test_the_first_rejects_are_named_by_their_place_in_the_stream() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        intake = Intake({"default": host.start()})
        blocks = [lines(ACKS + line() + BAD), lines(line(), oversized=1), lines(b"\n" + BAD * 5), lines(BAD)]
        client = await taken(intake, blocks)
        answer = answered(client)
        assert answer is not None
        assert [error["line"] for error in answer["errors"]] == [3, 4, 7, 8, 9]
        assert len(answer["errors"]) == NAMED_REJECTS
        assert answer["errors"][1]["reason"] == "Line is longer than 65,536 bytes"
        assert {key: answer[key] for key in ("durable", "rejected")} == {"durable": 2, "rejected": 8}
        await intake.submit(lines(line()), client)
        await client.wait_committed()
        assert answered(client) == {"durable": 3, "rejected": 8}
        tasks.cancel_scope.cancel()


async def answers(client: ClientState) -> list[dict[str, Any]]:
    """Return the acks of all that a client has sent so far."""
    found = []
    while client.uncommitted:
        await client.wait_committed()
        if (answer := answered(client)) is not None:
            found.append({key: value for key, value in answer.items() if key != "errors"})
    return found


async def test_an_ack_covers_nothing_behind_what_is_not_durable_yet() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        intake, client = Intake({DEFAULT: pipeline}), ClientState(PEER)
        host.gate.close()
        await intake.submit(lines(ACKS + BAD + line()), client)
        await anyio.wait_all_tasks_blocked()  # its commit is under way
        await intake.submit(lines(line() + BAD, oversized=1), client)
        await intake.submit(lines(BAD), client)
        assert answered(client) is None
        host.gate.open()
        assert await answers(client) == [{"durable": 1, "rejected": 1}, {"durable": 2, "rejected": 4}]
        assert [error.line for error in client.errors] == [2, 6, 4, 7]
        tasks.cancel_scope.cancel()


async def test_what_was_to_be_acked_is_acked_though_acks_are_turned_off_behind_it() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        intake, client = Intake({DEFAULT: host.start()}), ClientState(PEER)
        host.gate.close()
        await intake.submit(lines(ACKS + line() + NO_ACKS + line()), client)
        await intake.submit(lines(BAD + line()), client)
        host.gate.open()
        assert await answers(client) == [{"durable": 2, "rejected": 0}]  # those of one context in one read go together
        await intake.submit(lines(line()), client)
        assert not client.uncommitted
        await intake.submit(lines(ACKS + line()), client)
        assert await answers(client) == [{"durable": 3, "rejected": 1}]
        tasks.cancel_scope.cancel()


async def test_what_the_disk_refuses_is_answered_as_dropped() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        intake, client = Intake({"default": pipeline}), ClientState(PEER)
        host.fs.errors = failing("pwrite", errno.EIO)
        await intake.submit(lines(ACKS + line() * 2), client)
        await client.wait_committed()
        assert answered(client) == {"durable": 0, "rejected": 0, "dropped": 2, "dropped_by_reason": {"disk_error": 2}}
        host.fs.errors = no_errors
        await intake.submit(lines(line()), client)
        await client.wait_committed()
        assert answered(client) == {"durable": 1, "rejected": 0, "dropped": 2, "dropped_by_reason": {"disk_error": 2}}
        assert pipeline.ledger().dropped == {"disk_error": 2}
        assert balanced(pipeline)
        tasks.cancel_scope.cancel()


async def test_events_are_dropped_and_counted_while_the_disk_hangs() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        await pipeline.commit_once()
        pipeline.pause()
        intake, block = Intake({"default": pipeline}), lines(line(padding=10_000) * 6)
        host.gate.close()
        count = 3 * MAX_PENDING_BYTES // len(block.block)
        started = anyio.current_time()
        await taken(intake, [block] * count)
        assert anyio.current_time() - started == pytest.approx(STALL_SECONDS, abs=STALL_SECONDS)
        shed = pipeline.ledger().dropped["stalled"]
        assert 6 * count // 2 < shed < 6 * count
        host.gate.open()
        await pipeline.commit_once()
        assert pipeline.ledger().queued == 6 * count - shed
        assert balanced(pipeline)
        tasks.cancel_scope.cancel()


async def test_a_slow_disk_slows_clients_down_and_memory_stays_bounded() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        await pipeline.commit_once()
        pipeline.pause()
        intake, block = Intake({"default": pipeline}), lines(line(padding=10_000) * 6)
        sent, ahead = 0, 0

        async def slow_disk() -> None:
            while True:
                host.gate.close()
                await anyio.sleep(STALL_SECONDS / 2)
                host.gate.open()
                await pipeline.commit_once()

        async def flood() -> None:
            nonlocal sent, ahead
            client = ClientState(PEER)
            for _ in range(60):
                await intake.wait_for_capacity()
                await intake.submit(block, client)
                sent += 6
                ahead = max(ahead, (sent - pipeline.ledger().accepted) * 10_000)

        tasks.start_soon(slow_disk)
        async with anyio.create_task_group() as floods:
            for _ in range(10):
                floods.start_soon(flood)
        host.gate.open()
        await pipeline.commit_once()
        assert sent == pipeline.ledger().queued == 10 * 60 * 6
        assert ahead < 2 * MAX_PENDING_BYTES
        tasks.cancel_scope.cancel()


async def test_a_client_that_cannot_be_answered_does_not_wait_for_the_disk() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        intake = Intake({"default": host.start()})
        host.gate.close()
        with anyio.fail_after(HUNG_AFTER):
            client = await taken(intake, [lines(ACKS + line())], answerable=False)
        assert client.next_ack() is None
        tasks.cancel_scope.cancel()


async def test_rejects_are_logged_at_intervals_with_reason_and_peer() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        intake = Intake({"default": host.start()})
        with capture_logs() as logged:
            await taken(intake, [lines(BAD * 3), lines(BAD), lines(b"", 1)])
            await anyio.sleep(60)
            await taken(intake, [lines(b'{"hash":1}\n')])
        complaints = [each for each in logged if each["event"] == "lines_rejected"]
        first, second = complaints
        assert (first["uid"], first["pid"], first["lines"], first["suppressed"]) == (1234, 4711, 3, 0)
        assert "malformed" in first["reason"]
        assert second["suppressed"] == 2
        assert second["log_level"] == "warning"
        assert intake.rejected == 6
        tasks.cancel_scope.cancel()


async def test_a_reason_is_cut_to_a_length_that_fits_a_log_line() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        intake = Intake({"default": host.start()})
        with capture_logs() as logged:
            client = await taken(intake, [lines(ACKS + b'{"' + b"k" * 9000 + b'":1}\n')])
        assert [len(each["reason"]) for each in logged if each["event"] == "lines_rejected"] == [200]
        assert [len(error.reason) for error in client.errors] == [200]
        tasks.cancel_scope.cancel()


async def test_good_lines_in_a_flood_of_bad_ones_are_taken() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        intake, other = Intake({"default": pipeline}), ClientState(Peer(pid=1, uid=1234))
        await taken(intake, [lines(BAD * PATIENCE)])
        assert intake.dismiss(BAD * 50, ClientState(PEER))
        assert not intake.dismiss(BAD * 50, other)
        assert not intake.dismiss(BAD * 50 + b" \t" + line(), ClientState(PEER))
        client = await taken(intake, [lines(BAD * 50 + line()), lines(BAD * 50), lines(BAD * 50 + line())])
        assert (client.rejected, client.lines) == (150, 152)
        await pipeline.commit_once()
        assert (intake.rejected, pipeline.ledger().accepted) == (PATIENCE + 200, 2)
        tasks.cancel_scope.cancel()


async def test_messages_count_to_their_senders() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks, limits=Limits(max_bytes=20_000, segment_bytes=1000))
        pipeline = host.start()
        pipeline.pause()
        intake = Intake({"default": pipeline})
        messages = [line("a")] + [line(padding=3000) for _ in range(10)] + [line("b") + BAD, line("c")]
        owners = [1] + [2] * 10 + [3, 1]
        assert intake.submit_messages(messages, owners, client_of) == [11]
        await pipeline.commit_once()
        assert pipeline.ledger().dropped == {"quota": 10}
        assert pipeline.ledger().queued == 2
        (over,) = (await pipeline.status()).over_quota
        assert (over.uid, over.events) == (2, 10)
        tasks.cancel_scope.cancel()


async def test_messages_are_dropped_and_counted_while_the_disk_hangs() -> None:
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks)
        pipeline = host.start()
        intake = Intake({"default": pipeline})
        host.gate.close()
        tasks.start_soon(pipeline.commit_once)
        await anyio.wait_all_tasks_blocked()
        message = line() * 500
        accepted = 0
        while not pipeline.should_drop and accepted < 2 * MAX_PENDING_BYTES:
            assert intake.submit_messages([message], [PEER.uid], client_of) == []
            accepted += len(message)
            await anyio.sleep(STALL_SECONDS / 10)
        assert accepted >= MAX_PENDING_BYTES
        assert intake.submit_messages([line(), line()], [PEER.uid, 0], client_of) == []
        assert pipeline.ledger().dropped == {"stalled": 2}
        host.gate.open()
        await pipeline.commit_once()
        assert balanced(pipeline)
        tasks.cancel_scope.cancel()
