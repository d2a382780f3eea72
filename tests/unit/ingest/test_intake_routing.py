"""Intake with several destinations: what goes where, what is denied or limited, and who waits for whom."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import pytest
from structlog.testing import capture_logs

from agent.cache_use import NO_USE
from agent.delivery.pipeline import Pipeline
from agent.events import Context
from agent.ingest.framing import Lines
from agent.ingest.intake import REMEMBERED_PEERS, ClientState, Intake
from agent.peers import UNKNOWN, Peer
from agent.queue.committer import STALL_SECONDS
from agent.queue.cursor import Outcome
from agent.rules import NO_RULES, Rule, Rules, Sender
from tests.support import virtual_time
from tests.support.edge import ACKS, GatedHost, line, line_of

pytestmark = pytest.mark.anyio
BUILDER, STRANGER = Peer(pid=1, uid=1234), Peer(pid=2, uid=5678)
ASKS_FOR_WEB = b'{"context":{"destination":"web"}}\n'
ASKS_FOR_NONE = b'{"context":{"destination":null}}\n'
RULES = Rules([Rule("web", uid=frozenset({BUILDER.uid})), Rule("web", asks_for=frozenset({"web"}))])


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Time passes at once."""
    return virtual_time.backend(request.param)


class Two(NamedTuple):
    """An intake before the destinations default and web, each with a disk of its own; nothing is delivered."""

    intake: Intake
    hosts: Mapping[str, GatedHost]
    taking: dict[str, Pipeline]

    async def queued(self) -> dict[str, int]:
        """Return how many events wait for each."""
        for host in self.hosts.values():
            await host.pipeline.commit_once()
        return {name: host.pipeline.ledger().queued for name, host in self.hosts.items()}

    def dropped(self, name: str) -> Mapping[str, int]:
        """Return what a destination has dropped, by reason."""
        return self.hosts[name].pipeline.ledger().dropped

    async def send(self, data: bytes, client: ClientState) -> ClientState:
        """Take what a client writes, and wait until it is on the disk."""
        await self.intake.submit(Lines(data, 0), client)
        await client.wait_committed()
        return client

    async def fill(self, name: str) -> None:
        """Have a destination's disk hang, with as much before it as it takes."""
        host = self.hosts[name]
        host.gate.close()
        await anyio.wait_all_tasks_blocked()
        client = ClientState(BUILDER if name == "web" else STRANGER)
        while not host.pipeline.is_full:
            await self.intake.submit(Lines(line_of(60_000) * 16, 0), client)
            await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def two(rules: Rules = RULES) -> AsyncIterator[Two]:
    """Yield an intake with two destinations."""
    async with anyio.create_task_group() as tasks:
        hosts = {name: GatedHost(tasks) for name in ("default", "web")}
        taking = {name: host.start() for name, host in hosts.items()}
        for pipeline in taking.values():
            pipeline.pause()
        yield Two(Intake(taking, rules), hosts, taking)
        for host in hosts.values():
            host.gate.open()
        tasks.cancel_scope.cancel()


def told(client: ClientState) -> tuple[int, dict[str, int]]:
    """Return how many events a new ack says are durable, and how many were dropped, by reason."""
    ack = client.next_ack()
    assert ack is not None
    counts = json.loads(ack)
    return counts["durable"], counts.get("dropped_by_reason", {})


async def test_a_rule_decides_by_who_sends_and_what_is_asked_for_line_by_line() -> None:
    async with two() as made:
        await made.send(ACKS + line() * 3, ClientState(BUILDER))
        stranger = await made.send(
            ACKS + line() + ASKS_FOR_WEB + line() * 4 + ASKS_FOR_NONE + line(), ClientState(STRANGER)
        )
        assert await made.queued() == {"default": 2, "web": 7}
        assert told(stranger) == (6, {})


async def test_who_asks_for_what_no_rule_gives_is_told_and_logged_and_counted_once() -> None:
    async with two(Rules([Rule("web", uid=frozenset({BUILDER.uid}))])) as made:
        with capture_logs() as logs:
            client = await made.send(ACKS + ASKS_FOR_WEB + line() * 2, ClientState(STRANGER))
            await made.send(line(), client)
        assert client.dropped_by_reason == {"denied": 3}
        assert made.intake.denied == 3
        assert await made.queued() == {"default": 0, "web": 0}
        assert made.dropped("default") == made.dropped("web") == {}
        (log,) = [each for each in logs if each["event"] == "events_denied"]
        assert (log["uid"], log["pid"], log["events"]) == (STRANGER.uid, STRANGER.pid, 2)
        assert "no rule lets this sender choose it" in log["reason"]


async def test_other_rules_hold_at_once_for_clients_that_are_connected() -> None:
    async with two(NO_RULES) as made:
        client = await made.send(ACKS + line(), ClientState(BUILDER))
        made.intake.reconfigure(RULES)
        await made.send(line(), client)
        made.intake.reconfigure(Rules(denies_others=True))
        await made.send(line(), client)
        assert await made.queued() == {"default": 1, "web": 1}
        assert client.dropped_by_reason == {"denied": 1}


async def test_a_peer_that_the_kernel_does_not_name_is_nobodys_and_groups_are_asked_for_only_where_a_rule_wants_them() -> (
    None
):
    def groups() -> frozenset[int]:
        asked.append(True)
        return frozenset({7, 8})

    asked: list[bool] = []
    async with two(Rules([Rule("web", uid=frozenset({UNKNOWN.uid}))])) as made:
        client = ClientState(UNKNOWN, groups=groups)
        assert made.intake.sender(client, None) == Sender("stream", None, frozenset())
        await made.send(line(), client)
        assert (await made.queued(), asked) == ({"default": 1, "web": 0}, [])
        made.intake.reconfigure(Rules([Rule("web", gid=frozenset({8}))]))
        await made.send(line(), client)
        assert (await made.queued(), asked) == ({"default": 1, "web": 1}, [True])


async def test_routes_stay_right_beyond_those_that_are_remembered() -> None:
    async with two() as made:
        for uid in range(2 * REMEMBERED_PEERS):
            found = made.intake.route(Sender("stream", uid))
            assert found.destination == ("web" if uid == BUILDER.uid else "default")


async def test_a_limit_is_each_users_own_and_what_is_beyond_it_is_the_destinations_drop() -> None:
    rules = Rules([Rule("web", socket=frozenset({"stream"}), max_events_per_second=10)])
    async with two(rules) as made:
        builder, stranger = ClientState(BUILDER), ClientState(STRANGER)
        for client in (builder, stranger):
            await made.send(ACKS + line() * 10, client)
            await made.send(line() * 2, client)
        assert told(builder) == told(stranger) == (10, {"rate_limited": 2})
        await anyio.sleep(0.5)
        await made.send(line() * 5, builder)
        assert told(builder) == (15, {"rate_limited": 2})
        assert made.dropped("web") == {"rate_limited": 4}
        assert await made.queued() == {"default": 0, "web": 25}
        made.intake.reconfigure(RULES)
        await made.send(line() * 100, builder)
        assert told(builder) == (115, {"rate_limited": 2})


async def test_a_reload_that_leaves_a_limit_as_it_is_gives_nobody_more() -> None:
    limited = Rule("web", uid=frozenset({BUILDER.uid}), max_events_per_second=1)
    async with two(Rules([limited])) as made:
        builder = ClientState(BUILDER)
        await made.send(ACKS + line() * 10, builder)  # in one go, so that nothing is left of it for 9 s
        assert told(builder)[0] == 10
        for rules in ([limited], [Rule("default", gid=frozenset({7})), limited]):
            made.intake.reconfigure(Rules([each._replace() for each in rules]))
            await made.send(line(), builder)
        assert told(builder) == (10, {"rate_limited": 2})
        made.intake.reconfigure(Rules([limited._replace(max_events_per_second=20)]))
        await made.send(line(), builder)
        assert told(builder) == (11, {"rate_limited": 2})


async def test_messages_of_different_senders_go_where_each_ones_rule_says() -> None:
    clients = [ClientState(BUILDER), ClientState(STRANGER), ClientState(BUILDER), ClientState(STRANGER)]
    messages = [line("a"), line("b") * 2, ASKS_FOR_WEB + line("c"), ASKS_FOR_WEB + line("d") * 3]
    async with two() as made:
        others = made.intake.submit_messages(
            messages, [client.peer.uid for client in clients], lambda index: clients[index]
        )
        assert others == [2, 3]  # where they ask to go there may be no room, and they can wait for it
        assert await made.queued() == {"default": 2, "web": 1}


async def test_who_sends_to_a_full_destination_waits_alone() -> None:
    async with two() as made:
        await made.fill("web")
        assert await made.intake.wait_for_capacity()
        with anyio.fail_after(0.1):
            stranger = await made.send(ACKS + line(), ClientState(STRANGER))
        assert stranger.durable == 1
        clients = [ClientState(BUILDER), ClientState(STRANGER)]
        others = made.intake.submit_messages(
            [line(), line()], [client.peer.uid for client in clients], lambda index: clients[index]
        )
        assert others == [0]


async def test_without_rules_room_in_another_destination_lets_nobody_fill_memory() -> None:
    async with two(Rules()) as made:
        await made.fill("default")
        for client in (None, ClientState(STRANGER)):
            with anyio.move_on_after(0.1) as waiting:
                await made.intake.wait_for_capacity(client)
            assert waiting.cancelled_caught


async def test_datagrams_to_a_full_destination_are_dropped_where_their_wait_would_hold_up_those_to_others() -> None:
    async with two() as made:
        await made.fill("web")
        with anyio.fail_after(0.1):
            builder = await made.send(line() * 2, ClientState(BUILDER, answerable=False, socket="datagram"))
            await made.send(line(), ClientState(STRANGER, answerable=False, socket="datagram"))
        assert builder.dropped_by_reason == {"stalled": 2}
        assert made.dropped("web") == {"stalled": 2}
        await made.fill("default")
        with anyio.move_on_after(0.1) as waiting:
            await made.send(line(), ClientState(STRANGER, answerable=False, socket="datagram"))
        assert waiting.cancelled_caught


async def test_a_full_destination_whose_disk_hangs_drops_what_is_its_own() -> None:
    async with two() as made:
        await made.fill("web")
        await anyio.sleep(STALL_SECONDS)
        builder = await made.send(ACKS + line() * 3, ClientState(BUILDER))
        assert builder.dropped_by_reason == {"stalled": 3}
        assert made.dropped("web") == {"stalled": 3}
        assert made.dropped("default") == {}


async def test_what_waited_for_room_in_a_destination_that_is_retired_meanwhile_is_not_lost_silently() -> None:
    async with two() as made:
        await made.fill("web")
        builder = ClientState(BUILDER)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.send, ACKS + line() * 2, builder)
            await anyio.wait_all_tasks_blocked()
            del made.taking["web"]
            made.hosts["web"].gate.open()
        assert builder.dropped_by_reason == {"stalled": 2}
        assert made.dropped("web") == {"stalled": 2}


async def test_a_destination_that_has_ended_takes_nothing_and_keeps_nobody_waiting() -> None:
    async with two() as made:
        pipeline = made.taking["web"]
        await made.hosts["web"].stop()
        client = await made.send(ACKS + line(), ClientState(BUILDER))
        assert told(client) == (0, {"stalled": 1})
        assert (await pipeline.commit_once()).refused is None
        del made.taking["web"]
        await made.send(line(), client)
        assert told(client) == (0, {"stalled": 1, "denied": 1})


async def test_a_request_is_refused_by_the_destination_that_is_retired_while_it_waits() -> None:
    async with two() as made:
        await made.fill("web")
        pipeline, refused = made.taking["web"], list[Outcome | None]()

        async def request() -> None:
            refused.append(await made.intake.submit_all_or_none(pipeline, [line()], NO_USE, Context(), BUILDER.uid))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request)
            await anyio.wait_all_tasks_blocked()
            del made.taking["web"]
            made.hosts["web"].gate.open()
        assert refused == [Outcome.STALLED]
