"""turbo alone, and turbo through the agent: which events arrive, how long turbo stays for them, and in how many requests.

    python -m tests.benchmarks.turbo [--events 260] [--rounds 3] [--json FILE]

turbo, its remote cache and the agent are real; the API is one that can be made to fail. A build is one from nothing, of half as
many packages as events: each task is missed here and there. `--events` is at most 260, which is 130 packages.

*made* is how many events a build makes, *delivered* how many of them the API has in the end, when it has been well again for as
long as it takes, *requests* in how many requests it got events, refused ones included. *at exit* is the time between the end of
the last task, of which turbo's own summary tells, and the end of turbo; *build* that between its start and its end.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol

from tests.benchmarks.contenders import MissingError
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Figures, Sample
from tests.benchmarks.turbo_table import ALONE, TurboReport
from tests.support import turbo
from tests.support.accounts import flushed, ledger_of
from tests.support.api_server import Answer, error
from tests.support.artifacts_api import ArtifactsApi
from tests.support.builds import cold_builds
from tests.support.daemon import Daemon, Sections
from tests.support.front import sections, url_of
from tests.support.monorepo import Monorepo
from tests.support.slow_network import SlowNetwork
from tests.support.tcp_server import TcpServer
from tests.support.waiting import eventually

MOST_EVENTS = 260
SENT_AT_ONCE = 100  # turbo sends when it has so many events
MANY_BUILDS, AT_ONCE, FEW_PACKAGES = 100, 4, 3
# As by default, but for how soon after an outage it tries again, which nobody wants to wait for here.
_SECTIONS: Sections = {"api": {"timeout": None}, "batch": {"max_delay": None}, "log": {"level": "warning"}}


@dataclass(frozen=True)
class Case:
    """What happens during a build: what its events are answered, or nothing listens at all, or a long way, or SIGKILL.

    With `cached` every result is in turbo's own cache: then there is nothing to be sent but events.
    """

    name: str
    answer: Answer = field(default_factory=Answer)
    gone: bool = False
    round_trip: float = 0.0
    killed: bool = False
    cached: bool = False

    def made(self, packages: int) -> int:
        """Return how many events the build makes: one for each look into a cache, where it can be looked into."""
        return packages if self.gone or self.cached else 2 * (packages + self.killed)

    def handed_over(self, packages: int) -> int:
        """Return how many of them turbo sends: if it is killed, only what it sends before its end."""
        made = self.made(packages)
        return made // SENT_AT_ONCE * SENT_AT_ONCE if self.killed else made


CASES = (
    Case("all well"),
    Case("events: 429", error(429, "rate_limited", "Too many requests")),
    Case("events: 503", error(503, "unavailable", "Down for maintenance")),
    Case("events: no answer", Answer(mode="hang")),
    Case("API gone", gone=True),
    Case("all cached, all well", cached=True),
    Case("all cached, round trip of 500 ms", cached=True, round_trip=0.5),
    Case("SIGKILL, all well", killed=True),
    Case("SIGKILL, events: no answer", Answer(mode="hang"), killed=True),
)


class Subject(Protocol):
    """How turbo reaches the API: `url` is for TURBO_API."""

    url: str

    def taken(self) -> int:
        """Return how many events turbo has handed over so far."""

    def settle(self) -> None:
        """Return when nothing more is to come, the API being well again."""


class Alone:
    """turbo speaks to the API itself, `way` being what it connects to."""

    def __init__(self, api: ArtifactsApi, way: TcpServer) -> None:
        self._api, self._way, self.url = api, way, way.url

    def taken(self) -> int:
        """Return how many events the API has received, whatever it answers."""
        return sum(len(request.events) for request in self._api.posts())

    def settle(self) -> None:
        """Wait for what is still on its way: turbo is gone, and so are its connections once that has arrived."""
        for server in (self._way, self._api):
            eventually(partial(_connections, server), lambda count: count == 0)


class Through:
    """turbo speaks to an agent."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self.url = daemon, url_of(daemon)

    def taken(self) -> int:
        """Return how many events the agent has on disk."""
        accepted: int = ledger_of(self._daemon.status())["accepted"]
        return accepted

    def settle(self) -> None:
        """Let the agent deliver."""
        self._daemon.request("POST", "/resume").raise_for_status()
        assert flushed(self._daemon, deadline=60.0), self._daemon.status()


def run(size: Size) -> TurboReport:
    """Measure every case, turbo alone and through the agent in turn. Raises MissingError."""
    if turbo.program() is None:
        raise MissingError(f"turbo is not installed; install it with: {turbo.HINT}")
    packages = min(size.events, MOST_EVENTS) // 2
    builds = min(MANY_BUILDS, packages)
    facts = size.facts(
        packages=packages, **{"at exit without a remote cache, ms": f"{_no_remote_cache(size, packages):.0f}"}
    )
    samples: list[Sample] = []
    for _ in range(size.rounds):
        for case in CASES:
            samples += [Sample(case.name, way, _one_build(size, case, way, packages)) for way in (ALONE, AGENT)]
        samples += [Sample(f"{builds} builds", way, _many_builds(size, way, builds)) for way in (ALONE, AGENT)]
    return TurboReport("turbo", samples, facts)


def _no_remote_cache(size: Size, packages: int) -> float:
    """Return how long turbo stays, in milliseconds, if there is nobody to send events to."""
    with size.fresh() as directory:
        runs = [turbo.run(Monorepo(directory / f"{number}", packages), None) for number in range(size.rounds)]
        return median(1000 * run.seconds_at_exit for run in runs)


def _one_build(size: Size, case: Case, subject: str, packages: int) -> Figures:
    with (
        size.fresh() as directory,
        ArtifactsApi(token=turbo.TOKEN) as api,
        _subject(directory, api, case, subject) as way,
    ):
        monorepo = Monorepo(directory / "m", packages, gated=case.killed)
        api.default = case.answer
        if case.cached:
            turbo.run(monorepo, None)
        if case.gone:
            api.stop()
        handed_over = case.handed_over(packages)
        figures = _killed(monorepo, way, handed_over) if case.killed else _whole(monorepo, way)
        api.default = Answer()
        if case.gone:
            api.start()
        way.settle()
        arrived = _arrived(api)
        assert subject != AGENT or arrived["delivered"] == handed_over, f"{case.name}: {arrived} of {handed_over}"
        return {"made": case.made(packages), **arrived, **figures}


def _whole(monorepo: Monorepo, way: Subject) -> Figures:
    run = turbo.run(monorepo, way.url)
    return {"at exit, ms": 1000 * run.seconds_at_exit, "build, ms": 1000 * run.seconds}


def _killed(monorepo: Monorepo, way: Subject, handed_over: int) -> Figures:
    """Kill turbo when its last task runs and it has handed over so many events."""
    with turbo.running(monorepo, way.url) as build:
        eventually(monorepo.started.exists, bool, 60.0)
        eventually(way.taken, lambda taken: taken >= handed_over)
        build.kill()
        build.wait()
    monorepo.open_gate()
    return {}


def _many_builds(size: Size, subject: str, builds: int) -> Figures:
    with size.fresh() as directory, ArtifactsApi(token=turbo.TOKEN) as api:
        with _subject(directory, api, Case(""), subject) as way:
            began = time.monotonic()
            cold_builds(directory, way.url, builds=builds, packages=FEW_PACKAGES, at_once=AT_ONCE)
            seconds = time.monotonic() - began
            way.settle()
        return {"made": 2 * FEW_PACKAGES * builds, **_arrived(api), "build, ms": 1000 * seconds / builds}


@contextmanager
def _subject(directory: Path, api: ArtifactsApi, case: Case, subject: str) -> Iterator[Subject]:
    with ExitStack() as stack:
        way: TcpServer = stack.enter_context(SlowNetwork(api.port, case.round_trip)) if case.round_trip else api
        if subject == ALONE:
            yield Alone(api, way)
        else:
            home = directory / "a"
            yield Through(stack.enter_context(Daemon(home, way.url, sections(home, _SECTIONS))))


def _connections(server: TcpServer) -> int:
    return server.connections


def _arrived(api: ArtifactsApi) -> Figures:
    distinct = {tuple(event.items()) for event in api.accepted_events()}
    return {"delivered": len(distinct), "requests": len(api.posts())}


BENCHMARK = Benchmark("turbo", run, events=MOST_EVENTS, rounds=3)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
