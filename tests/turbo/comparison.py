"""The runs that are compared: what turbo did, made and printed, and which of the events that it has written whole arrived."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support import turbo
from tests.support.api_server import Answer, error
from tests.support.artifacts_api import ArtifactsApi
from tests.support.monorepo import Monorepo
from tests.turbo.ways import Events, Way, accepted_at, lines_of, way_of

PACKAGES = 3
PACKAGES_TO_KILL = 60  # turbo 2 sends events when it has 100
BUSY_LOOPS = 2
_SIGNING = {"TURBO_REMOTE_CACHE_SIGNATURE_KEY": "0123456789abcdef" * 2}
DOWN = Answer(mode="cut")  # stands for an API that does not listen
TROUBLE = {
    "down": DOWN,
    "503": error(503, "unavailable", "Down for maintenance"),
    "reset": Answer(mode="reset"),
    "401": error(401, "unauthorized", "Invalid token"),
}
CASES = ("cached", "signed", *TROUBLE, "killed")


@dataclass(frozen=True)
class Build:
    """What one build came to."""

    code: int
    tasks: dict[str, turbo.Task] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    outputs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a case came to: `artifacts` are those that the API has, `seconds` of the builds are for people alone.

    `missing` is what turbo had written whole and the API has not got.
    """

    builds: list[Build]
    artifacts: dict[str, bytes]
    seconds: list[float] = field(compare=False)
    missing: Events = field(compare=False)
    arrived: int = field(compare=False)


def play(case: str, way: str, release: int, directory: Path) -> Outcome:
    """Play one of CASES on one of WAYS, with turbo 1 or 2."""
    with ArtifactsApi(token=turbo.TOKEN) as api:
        api.status = "enabled"
        with way_of(way, directory / "way", api) as opened:
            if case == "killed":
                builds, seconds = _killed(opened, directory, release), list[float]()
            elif case in TROUBLE:
                builds, seconds = _failing(opened, directory, release, TROUBLE[case])
            else:
                builds, seconds = _cached(opened, directory, release, signed=case == "signed")
            opened.settle()
            written = opened.written()
        arrived = accepted_at(api)
    assert api.violations == []
    missing = written - arrived if written is not None else Events()
    bodies = {request.path: request.body for request in api.requests if request.method == "PUT"}
    return Outcome(builds, {} if case == "killed" else bodies, seconds, missing, arrived.total())


def _cached(way: Way, directory: Path, release: int, *, signed: bool) -> tuple[list[Build], list[float]]:
    """Build from nothing, then with everything in turbo's own cache, then with everything in the remote cache alone."""
    monorepo = Monorepo(directory / "monorepo", PACKAGES, signed=signed, release=release)
    env = _SIGNING if signed else {}
    runs = [way.build(monorepo, env), way.build(monorepo, env)]
    builds = [_build(run, monorepo) for run in runs]
    monorepo.forget_local_results()
    run = way.build(monorepo, env)
    return [*builds, _build(run, monorepo)], [each.seconds for each in [*runs, run]]


def _failing(way: Way, directory: Path, release: int, trouble: Answer) -> tuple[list[Build], list[float]]:
    """Build once while the API fails, for events and artifacts; it is well again afterwards."""
    api, monorepo = way.api, Monorepo(directory / "monorepo", 1, release=release)
    if trouble is DOWN:
        api.stop()
    else:
        api.default = api.artifacts_down = trouble
    run = way.build(monorepo, {})
    if trouble is DOWN:
        api.start()
    api.default, api.artifacts_down = Answer(), None
    build = _build(run, monorepo)
    if trouble is DOWN:  # turbo 2 warns in other words of a connection that is refused than of one that ends
        build = replace(build, lines=[line for line in build.lines if not line.startswith(" WARNING ")])
    return [build], [run.seconds]


def _killed(way: Way, directory: Path, release: int) -> list[Build]:
    monorepo = Monorepo(directory / "monorepo", PACKAGES_TO_KILL, gated=True, release=release)
    return [Build(way.kill_amidst(monorepo, {}))]


def _build(run: turbo.Run, monorepo: Monorepo) -> Build:
    return Build(run.code, run.tasks, lines_of(run), monorepo.outputs())


@contextmanager
def busy_loops(count: int = BUSY_LOOPS) -> Iterator[None]:
    """Keep so many processors busy while the block lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait()


def differences(alone: Outcome, other: Outcome) -> str:
    """Return what is not the same, for people; "" if nothing is."""
    if alone == other:
        return ""
    parts = [
        f"{name} of build {number}: {getattr(a, name)!r} alone, {getattr(b, name)!r}"
        for number, (a, b) in enumerate(zip(alone.builds, other.builds, strict=True))
        for name in ("code", "tasks", "lines", "outputs")
        if getattr(a, name) != getattr(b, name)
    ]
    if alone.artifacts != other.artifacts:
        parts.append(f"artifacts: {json.dumps([sorted(alone.artifacts), sorted(other.artifacts)])}")
    return "; ".join(parts)
