"""What `artifacts-agent fleet` shows of a team, as it asks the engine."""

from collections.abc import Iterator
from functools import partial
from math import isfinite
from typing import NamedTuple

import msgspec
from nats.js import JetStreamContext

from agent.events import decode_event
from agent.fleet import dead, names
from agent.fleet.engine import ConsumerState, Engine, Message
from agent.fleet.following import snapshot_name
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.overview import Overview, look
from agent.fleet.shared_pause import SharedPause, decode_pause
from agent.fleet.stored import read_stored
from agent.queue.cursor import Pause
from agent.queue.dead_letters import decode_dead_letter
from agent.queue.maintenance.browse import Origin
from agent.timestamps import iso


class TeamStatus(NamedTuple):
    """How a team is doing: where its events are, who takes them, and why nothing is delivered, if so."""

    overview: Overview
    consumer: ConsumerState
    pause: Pause | None

    def to_json(self) -> dict[str, object]:
        """Return it as `fleet status --json` prints it; times as text."""
        found, pause = self.overview, self.pause
        return {
            **vars(found.counts),
            "in_doubt": found.in_doubt,
            "pause": None
            if pause is None
            else {
                "reason": pause.reason,
                "message": pause.message,
                "since": iso(pause.since),
                "probes": pause.probes,
                "next_probe_at": iso(pause.probe_at) if isfinite(pause.probe_at) else None,
            },
            "messages": found.messages,
            "messages_waiting": self.consumer.waiting,
            "messages_held": self.consumer.held,
            "requests_for_more": self.consumer.asking,
            "last_taken_at": _iso(self.consumer.taken_at),
            "unreadable_messages": found.unreadable,
            "whole": found.is_whole,
            "oldest_event_at": _iso(found.oldest_event_at),
            "pools": {
                subject: {
                    **vars(pool.counts),
                    "queues": pool.queues,
                    "forgotten_early": pool.forgotten_early,
                    "seen_at": _iso(pool.seen_at),
                }
                for subject, pool in found.pools.items()
            },
            "relays": {
                name: {
                    "first_request_at": iso(relay.first_at),
                    "last_request_at": iso(relay.last_at),
                    "open_requests": relay.open_requests,
                }
                for name, relay in found.relays.items()
            },
        }


async def team_status(engine: NatsEngine, team: str) -> TeamStatus:
    """Return how a team is doing. Raises EngineError."""
    # The consumer first: it is there once the team is set up.
    consumer = await engine.consumer_state(names.EVENTS, names.consumer(team))
    snapshot = await engine.load(snapshot_name(team))
    overview = await look(engine, team, snapshot)
    pause = await engine.get(names.pause_key(team))
    return TeamStatus(overview, consumer, decode_pause(pause.value) if pause is not None else None)


async def probe_now(engine: Engine, team: str) -> Pause | None:
    """Let the next probe of a team's pause be due; return the pause, or None if there is none. Raises EngineError.

    It is not removed: relays would take that for the word of another one that was accepted.
    """
    shared = SharedPause(engine, names.pause_key(team), "fleet resume")
    await shared.look()
    while (pause := shared.known) is not None and pause.probe_at > pause.since:
        shared.remember(msgspec.structs.replace(pause, probe_at=pause.since, probes=0))
        await shared.write()  # if a relay was faster, what it has written is known now
    return shared.known


async def dead_messages(engine: NatsEngine, team: str) -> list[Message]:
    """Return the dead letters of a team, the oldest first. Raises EngineError."""
    found: list[Message] = []

    def take(message: Message) -> bool:
        found.append(message)
        return True

    last = (await engine.stream_state(names.DEAD)).last_seq
    await read_stored(engine, names.DEAD, names.dead_subject(team), 0, last, take)
    return sorted(found, key=lambda each: each.seq)


async def purge_dead(engine: NatsEngine, team: str, up_to: int | None = None) -> int:
    """Remove the dead letters of a team, and return how many those were. Raises EngineError.

    With `up_to`, those with a higher number stay; else those that come meanwhile.
    """
    numbers = [message.seq for message in await dead_messages(engine, team)]
    found = [number for number in numbers if up_to is None or number <= up_to]
    if found:
        subject = names.dead_subject(team)
        purge = partial(JetStreamContext.purge_stream, name=names.DEAD, subject=subject, seq=found[-1] + 1)
        await engine.ask(purge, f"$JS.API.STREAM.PURGE.{names.DEAD}")
    return len(found)


def described(message: Message) -> dict[str, object]:
    """Return a dead letter as `fleet dead-letters ls --json` prints it; `event` is None for a message that said nothing.

    `number` is that of the message in AA_DEAD, `seq` that of the event in the queue that published it.
    """
    headers = message.headers
    facts: dict[str, object] = {
        "number": message.seq,
        "subject": headers.get(dead.SUBJECT),
        "queue": headers.get(dead.QUEUE),
        "seq": None,
        "rejected_at": None,
        "status": None,
        "message": headers.get(dead.REASON),
        "context": None,
        "event": None,
    }
    return facts | dict(_of_event(message)) if headers.get(dead.KIND) == dead.EVENT else facts


def _of_event(message: Message) -> Iterator[tuple[str, object]]:
    try:
        letter = decode_dead_letter(message.body)
        event = msgspec.to_builtins(decode_event(letter.line))
    except (msgspec.DecodeError, UnicodeDecodeError):
        yield "message", "it cannot be read"
        return
    yield from (("seq", letter.seq), ("rejected_at", iso(letter.rejected_at)))
    yield from (("status", letter.status), ("message", letter.message))
    yield from (("context", msgspec.to_builtins(Origin.of(letter.context))), ("event", event))


def _iso(at: float | None) -> str | None:
    return None if at is None else iso(at)
