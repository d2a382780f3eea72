"""What the promises of a fleet depend on, each as the mistake that would break it: see `orders`."""

from tests.mutations.rewriting import Order

BACKLOG, FETCHING, TRANSPORT = "agent/fleet/backlog.py", "agent/fleet/fetching.py", "agent/fleet/relay_transport.py"
PAUSE, RATE, LEASE = "agent/fleet/shared_pause.py", "agent/fleet/shared_rate.py", "agent/fleet/shared_lease.py"
TURNS, DEAD = "agent/fleet/shared.py", "agent/fleet/dead.py"

FLEETS = (
    # Intent, request, settlement, acknowledgement
    Order(
        "a request is made before it is written down",
        TRANSPORT,
        """
        refused = await self._backlog.write_intent(batch)
        if refused is not None:
            return refused
        verdict = await self._transport.send(batch)
        """,
        """
        verdict = await self._transport.send(batch)
        refused = await self._backlog.write_intent(batch)
        if refused is not None:
            return refused
        """,
    ),
    Order(
        "a request is made though its record was not taken",
        BACKLOG,
        """
        if not written:
            return Verdict(Kind.TRANSIENT, f"the engine takes no record: {self._writer.error}")
        """,
        "",
    ),
    Order(
        "a message is acknowledged before its settlement is written",
        BACKLOG,
        """
        await self._settle(parts, outcome, request.id if request is not None else None)
        self._requests.pop(first, None)
        await self._forget(batch.spans)
        """,
        """
        await self._forget(batch.spans)
        await self._settle(parts, outcome, request.id if request is not None else None)
        self._requests.pop(first, None)
        """,
    ),
    Order(
        "a settlement that is not taken is not written again",
        BACKLOG,
        'await self._writer.insist("a settlement", partial(self._writer.write, record, name))',
        """
        with suppress(EngineError):
            await self._writer.write(record, name)
        """,
    ),
    Order(
        "an answer of a gateway counts as one of the API",
        TRANSPORT,
        "_OF_A_GATEWAY = frozenset({502, 504})  # what stands behind it may have taken the events, and not been heard",
        "_OF_A_GATEWAY = frozenset[int]()",
    ),
    Order(
        "a request without an answer leaves no doubt",
        TRANSPORT,
        "return verdict.unsent or (",
        "return verdict.status is None or (",
    ),
    # What was settled before, or is held by others
    Order(
        "what comes to its end by the ledger is not acknowledged",
        FETCHING,
        "await self._writer.ack(done.message)",
        "pass",
    ),
    Order(
        "events are used before the ledger is read up to them",
        FETCHING,
        "await self._follower.catch_up()",
        "pass",
    ),
    Order(
        "a copy of a message that is held is held, too",
        FETCHING,
        "blockers = self.held.standing_for(Part(found.subject, events.queue, events.spans))",
        "blockers: list[Held] = []",
    ),
    Order(
        "a message whose time has run out is used",
        FETCHING,
        "if now - held.kept_at > ACK_WAIT - SAFE_SECONDS:",
        "if False:",
    ),
    Order(
        "a request is made for a message that ran out while its record was written",
        BACKLOG,
        """
        if self.holds(batch):
            return None
        lapsed = Verdict(Kind.TRANSIENT, "the engine may have given the events to another relay")
        """,
        """
        return None
        lapsed = Verdict(Kind.TRANSIENT, "the engine may have given the events to another relay")
        """,
    ),
    Order(
        "no more time is asked for what is held",
        FETCHING,
        "tasks.start_soon(self._extend)",
        "",
    ),
    Order(
        "a message goes before what its queue said of itself is written",
        FETCHING,
        """
        await self._write_ledgers(readable)
        new = [held for each, events in readable if (held := await self._hold(each, events, now)) is not None]
        """,
        """
        new = [held for each, events in readable if (held := await self._hold(each, events, now)) is not None]
        await self._write_ledgers(readable)
        """,
    ),
    Order(
        "a message that says nothing goes before it is kept",
        FETCHING,
        "await self._writer.keep_dead(*dead.of_message(found, error, self._engine.max_payload))",
        """
        await self._writer.ack(found)
        await self._writer.keep_dead(*dead.of_message(found, error, self._engine.max_payload))
        """,
    ),
    # The rate
    Order(
        "who loses a turn makes its request all the same",
        RATE,
        """
        except ConflictError:
            continue
        """,
        """
        except ConflictError:
            return True
        """,
    ),
    Order(
        "the nearest relay has all the turns",
        RATE,
        "if is_due and first == self._relay:",
        "if is_due:",
    ),
    Order(
        "a turn is taken though another was taken a moment ago",
        RATE,
        "return self._turn.since + self.interval",
        "return self._turn.since",
    ),
    Order(
        "who waits and is gone is waited for without end",
        RATE,
        "if is_due and now >= max(self.next_at, self._first.since) + PATIENCE_SECONDS:",
        "if False:",
    ),
    Order(
        "all who wait are given up together",
        RATE,
        "if is_due and now >= max(self.next_at, self._first.since) + PATIENCE_SECONDS:",
        "if is_due and now >= self.next_at + PATIENCE_SECONDS:",
    ),
    # The pause
    Order(
        "a pause is written over what others have found out meanwhile",
        PAUSE,
        """
        self.unwritten = False
        self._follow(entry)
        """,
        "self._revision = entry.revision if entry is not None else 0",
    ),
    Order(
        "what is to be written is given up for what is there",
        PAUSE,
        """
        if not self.unwritten:
            self._follow(entry)
        """,
        "self._follow(entry)",
    ),
    Order(
        "a request begins without a look at the pause",
        TURNS,
        """
        was_changed = await pause.look()
        if pause.unwritten:
            return False
        """,
        "was_changed = False",
    ),
    # The probe
    Order(
        "a lease is used up to its end",
        LEASE,
        "return self._own != 0 and self._own == self._revision.value and used < LEASE_SECONDS - LEASE_MARGIN",
        "return self._own != 0 and self._own == self._revision.value and used < LEASE_SECONDS",
    ),
    Order(
        "a lease is taken over at once",
        LEASE,
        "if entry is not None and anyio.current_time() - self._revision.since < LEASE_SECONDS:",
        "if False:",
    ),
    Order(
        "a probe begins without a look at what the one before has found out",
        TURNS,
        """
        was_changed = await self._pause.look()
        if was_changed or self._pause.unwritten:
        """,
        """
        was_changed = False
        if was_changed or self._pause.unwritten:
        """,
    ),
    Order(
        "a lease is given back before what came of it is written",
        TURNS,
        """
        await self._pause.write()
        await self._lease.give_back()
        """,
        """
        await self._lease.give_back()
        await self._pause.write()
        """,
    ),
    Order(
        "a relay that was refused is as quick to probe as others",
        TURNS,
        "if self._pause.unwritten or not self.has_events() or self._gives_way():",
        "if self._pause.unwritten or not self.has_events():",
    ),
    Order(
        "a relay without an event ends the pause of all",
        TURNS,
        "if self._pause.unwritten or not self.has_events() or self._gives_way():",
        "if self._pause.unwritten or self._gives_way():",
    ),
    Order(
        "a relay that is refused alone pauses all again",
        TURNS,
        "if pause is not None and self._was_overruled and self._pause.known is None:",
        "if False:",
    ),
    Order(
        "a relay that was accepted again counts as refused alone",
        TURNS,
        "self._was_overruled, self.refused_alone = False, None",
        "self.refused_alone = None",
    ),
    Order(
        "a relay that is refused keeps what it holds from others",
        BACKLOG,
        "self._fetcher = Fetcher(writer, follower, runtime, max_held, self._may_hold)",
        "self._fetcher = Fetcher(writer, follower, runtime, max_held)",
    ),
    # Dead letters
    Order(
        "two events of a name are one dead letter",
        DEAD,
        'headers = {"Nats-Msg-Id": f"{subject}:{queue}:{letter.seq}", KIND: EVENT, SUBJECT: subject, QUEUE: queue}',
        'headers = {"Nats-Msg-Id": f"{queue}", KIND: EVENT, SUBJECT: subject, QUEUE: queue}',
    ),
    Order(
        "headers are kept that the client refuses",
        DEAD,
        'theirs = {f"Original-{name}": value for name, value in message.headers.items() if _is_name(name)}',
        'theirs = {f"Original-{name}": value for name, value in message.headers.items()}',
    ),
    Order(
        "a message that is too large to be kept is kept whole",
        DEAD,
        "if len(message.body) + _size(own | theirs) <= max_payload:",
        "if len(message.body) <= max_payload:",
    ),
)
"""Each of them has to be noticed by a test."""
