"""What a build came to, in a form in which two builds can be held against each other; and builds in sequence or all at once.

It knows turbo's results and the events that belong to them. It must never know what stood between turbo and the API.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.support import turbo
from tests.support.capture import Captured, CapturingServer
from tests.support.monorepo import Monorepo

Shape = Counter[tuple[str, str, str, bool]]  # source, event, hash, whether there is a duration


class Build(NamedTuple):
    """A build's results, and the shape of the events that turbo sent of it; sessions are another for every build."""

    code: int
    tasks: dict[str, turbo.Task]
    lines: list[str]
    outputs: dict[str, bytes]
    events: Shape


def three_builds(monorepo: Monorepo, api: str, sent_to: CapturingServer) -> list[Build]:
    """Build from nothing, then with everything in turbo's own cache, then with everything in the remote cache alone."""
    tasks = len(monorepo.names)
    cold = build(monorepo, api, sent_to, 2 * tasks)
    local_hit = build(monorepo, api, sent_to, tasks)
    monorepo.forget_local_results()
    return [cold, local_hit, build(monorepo, api, sent_to, 2 * tasks)]


def build(monorepo: Monorepo, api: str, sent_to: CapturingServer, events: int) -> Build:
    """Build everything against an API; `sent_to` is what sees turbo's requests, of which so many events are expected."""
    before = len(sent_to.posts())

    def requests() -> list[Captured]:
        return sent_to.posts()[before:]

    run = turbo.run(monorepo, api)
    sent_to.wait_for(lambda: sum(len(request.events) for request in requests()) >= events)
    assert len(sessions(requests())) == 1, "a build's events have one session"
    return Build(run.code, run.tasks, run.lines, monorepo.outputs(), shape(requests()))


def cold_builds(directory: Path, api: str, *, builds: int, packages: int, at_once: int = 1) -> list[turbo.Run]:
    """Build so many monorepos, each for the first time, and all of them alike."""
    monorepos = [Monorepo(directory / f"m{number:03}", packages) for number in range(builds)]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda monorepo: turbo.run(monorepo, api), monorepos))


def shape(requests: Sequence[Captured]) -> Shape:
    """Return what the events are about, and how often each is there."""
    events = [event for request in requests for event in request.events]
    return Counter((event["source"], event["event"], event["hash"], "duration" in event) for event in events)


def sessions(requests: Sequence[Captured]) -> Counter[str]:
    """Return how many events each session has."""
    return Counter(event["sessionId"] for request in requests for event in request.events)
