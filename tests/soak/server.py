"""The soak's API as a process of its own: `python -m tests.soak.server --seed N --record DIRECTORY`.

It misbehaves at random until SIGUSR1, and from then on does not; each account of `tests.soak.cast` is treated in its own way.
At SIGTERM it writes what it took to the directory: a `Record` as JSON, and one byte per event, how often it came, into a file
per client. It keeps no requests, so that its memory is bounded by the events. It must never know the agent.

An event is *taken* when the server decides on a 2xx for it, whether or not a whole answer then gets through.
"""

import argparse
import collections
import json
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.cast import ACCOUNTS, DEFAULT, account_of, token_of
from tests.soak.events import ci_of, identify, is_poisonous
from tests.support.api_server import Answer, ApiServer, error
from tests.support.capture import Captured
from tests.support.process import Child, running
from tests.support.senders import CI

SPELL_SECONDS, DOWN_SECONDS = 8.0, 1.5
MOST = 255
NAMED = 5
_LIMITS = (None, None, 20, 60, 90)

BLOCKED = (
    error(402, "payment_required", "The plan's limit was reached"),
    error(403, "forbidden", "The account is blocked"),
)

# How often each answer comes, of a thousand requests; the rest is a plain 200. Those of 2xx were taken, the others were not.
_RETRY_SOON = {"Retry-After": "1"}
TROUBLE: Mapping[int, tuple[Answer, ...]] = {
    40: (Answer(201), Answer(204, body=b""), Answer(202, body=b""), Answer(delay=0.1)),
    15: (
        Answer(mode="cut"),
        Answer(mode="reset"),
        Answer(mode="reset_mid_answer"),
        Answer(503, mode="reset"),
        Answer(503, mode="reset_mid_upload"),
        error(408, "timeout", "Too slow"),
        error(500, "internal", "Oops"),
        error(503, "unavailable", "Down for maintenance"),
    ),
    5: (
        Answer(mode="hang"),
        Answer(503, mode="hang"),
        Answer(delay=0.01, mode="drip"),
        error(425, "too_early", "Too early"),
        error(429, "rate_limited", "Too many requests", _RETRY_SOON),
        error(503, "unavailable", "Down for maintenance", _RETRY_SOON),
    ),
    3: (
        error(401, "unauthorized", "Unknown token"),
        *BLOCKED,
        error(404, "not_found", "No such route"),
    ),
}
_ANSWERS = [Answer(), *(answer for answers in TROUBLE.values() for answer in answers)]
_WEIGHTS = [weight for weight, answers in TROUBLE.items() for _ in answers]
_WEIGHTS.insert(0, 1000 - sum(_WEIGHTS))
_FLAKY_WEIGHTS = [sum(_WEIGHTS[1:]), *_WEIGHTS[1:]]


@dataclass
class Record:
    """What the server saw. What was taken and answered is by account."""

    answers: dict[str, int] = field(default_factory=collections.Counter)
    taken_events: dict[str, int] = field(default_factory=collections.Counter)
    taken_requests: dict[str, int] = field(default_factory=collections.Counter)
    answered_requests: dict[str, int] = field(default_factory=collections.Counter)
    outages: int = 0
    invented: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def unanswered(self, account: str) -> int:
        """Return how many requests there were whose events were taken, but the agent cannot know."""
        return self.taken_requests.get(account, 0) - self.answered_requests.get(account, 0)


_NAMES = (DEFAULT, *(account.name for account in ACCOUNTS))
_TREATMENTS = {account.name: account.treatment for account in ACCOUNTS}


class SoakServer(ApiServer):
    """Answers at random, from `seed`, but as it should while it is `calm` or `well`; `record` grows while it serves."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.record = Record(violations=self.violations)
        self.taken: dict[int, bytearray] = collections.defaultdict(bytearray)
        self.calm = False
        self.well = False
        self.random = random.Random(seed)

    def _next_scripted(self, request: Captured) -> Answer:
        if not request.is_events:
            return Answer()
        treatment = _TREATMENTS.get(account_of_request(request), "mixed")
        if treatment == "mixed" and (self.calm or self.well):
            self.max_events = None
        elif treatment == "mixed" and self.random.random() < 0.02:
            self.max_events = self.random.choice(_LIMITS)
        if self.well or treatment == "well" or (treatment == "mixed" and self.calm):
            return Answer()
        if treatment == "down":
            return error(503, "unavailable", "Down for maintenance")
        if treatment == "blocked":
            return self.random.choice(BLOCKED)
        answer = self.random.choices(_ANSWERS, _FLAKY_WEIGHTS if treatment == "flaky" else _WEIGHTS)[0]
        if answer.mode == "reset_mid_upload":
            self._count_answer(answer)
        return answer

    def _choose(self, request: Captured, scripted: Answer) -> Answer:
        if not request.is_events:
            return self._found(request, scripted)
        account = account_of_request(request)
        if account != DEFAULT and request.headers.get("authorization") != f"Bearer {token_of(account)}":
            self.violations.append(f"for {account} with {request.headers.get('authorization')}")
        refusal = self._refusal(request)
        answer = refusal if refusal is not None and scripted.status < 300 else scripted
        self._count_answer(answer)
        if answer.status < 300:
            self._take(request)
        return answer

    def _count_answer(self, answer: Answer) -> None:
        self.record.answers[f"{answer.status}" if answer.mode == "answer" else f"{answer.status} {answer.mode}"] += 1

    def _content_refusal(self, request: Captured) -> Answer | None:
        poisonous = any(is_poisonous(event["duration"]) for event in request.events)
        too_many = super()._content_refusal(request) if account_of_request(request) == DEFAULT else None
        return too_many or (error(400, "bad_request", "Poison") if poisonous else None)

    def _arrived(self, request: Captured) -> int:
        return 1 + _NAMES.index(account_of_request(request)) if request.is_events else 0

    def _answered(self, index: int, status: int) -> None:
        if index and status < 300:
            self.record.answered_requests[_NAMES[index - 1]] += 1

    def _take(self, request: Captured) -> None:
        account = account_of_request(request)
        self.record.taken_requests[account] += 1
        for event in request.events:
            self.record.taken_events[account] += 1
            known = identify(event)
            wrong = (
                known is None or account_of(known.client) != account or ci_of(known.number) != request.headers.get(CI)
            )
            if known is None or wrong:
                self.record.invented = [*self.record.invented, {"headers": request.headers, "event": event}][:NAMED]
            else:
                _count(self.taken[known.client], known.number)


def account_of_request(request: Captured) -> str:
    """Return the account that a request is for."""
    return request.query.get("slug", DEFAULT)


def _count(counts: bytearray, index: int) -> None:
    if index >= len(counts):
        counts.extend(bytes(index + 1 - len(counts)))
    counts[index] = min(counts[index] + 1, MOST)


# The run's side


@contextmanager
def soak_server(seed: int, record: Path) -> Iterator[tuple[Child, str]]:
    """Run the server while the block lasts; yields it and its URL."""
    command = [sys.executable, "-m", "tests.soak.server", f"--seed={seed}", f"--record={record}"]
    with running(command, env={}) as child:
        yield child, child.wait_for_line(r"^listening on (\S+)$", timeout=30)[1]


def read_record(directory: Path) -> tuple[Record, dict[int, bytes]]:
    """Read what a server that has ended took: the record, and per client a byte for each event."""
    counts = {int(path.name.removeprefix("taken-")): path.read_bytes() for path in directory.glob("taken-*")}
    return Record(**json.loads((directory / "record.json").read_text())), counts


# The process


def main() -> None:
    """Serve, with outages, until SIGTERM; say where on stdout."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.server", description=main.__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True, help="the directory to write to at the end")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    server = SoakServer(options.seed)
    _serve(server, random.Random(options.seed + 1))
    (options.record / "record.json").write_text(json.dumps(vars(server.record)))
    for client, counts in server.taken.items():
        (options.record / f"taken-{client}").write_bytes(counts)


_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}


def _serve(server: SoakServer, chance: random.Random) -> None:
    """Rough spells, calm spells and outages in turn, until SIGUSR1; then one long calm spell."""
    told = None
    while told != signal.SIGTERM:
        with server:
            if not server.record.outages:
                sys.stdout.write(f"listening on {server.url}\n")
                sys.stdout.flush()
            told = _spells(server, chance)
        if told is None:
            server.record.outages += 1
            told = _told(server, chance.uniform(0.1, 1.0) * DOWN_SECONDS)


def _spells(server: SoakServer, chance: random.Random) -> int | None:
    """Return when it is time for an outage, or SIGTERM."""
    for calm in chance.sample([True, False, False], chance.randint(1, 3)):
        server.calm = calm
        told = None if server.well else _told(server, chance.uniform(0.2, 1.0) * SPELL_SECONDS)
        if server.well:
            return signal.sigwait({signal.SIGTERM})
        if told is not None:
            return told
    return None


def _told(server: SoakServer, seconds: float) -> int | None:
    """Wait that long for a signal; SIGUSR1 is heeded here."""
    got = signal.sigtimedwait(_SIGNALS, seconds)
    server.well = got is not None and got.si_signo == signal.SIGUSR1
    return None if got is None else got.si_signo


if __name__ == "__main__":
    main()
