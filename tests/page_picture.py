"""The picture of the page in the README: a made-up week of builds, a real daemon and page, and Chromium.

python -m tests.page_picture
"""

import contextlib
import random
import tempfile
import time
import uuid
from pathlib import Path

from agent.events import Event
from agent.usage.counting import Sessions, count
from agent.usage.store import UsageStore
from tests.pictures import ROOT
from tests.support.api_server import ApiServer
from tests.support.browser import look_at
from tests.support.daemon import Daemon
from tests.support.web import served

PICTURE = ROOT / "agent/cli/views/page.png"
HOURS = 7 * 24


def main() -> None:
    """Draw it."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ApiServer() as api,
        Daemon(Path(directory), api.url) as daemon,
    ):
        write_week(daemon.queue, time.time())
        with daemon.connect() as client:
            client.send(b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h","duration":5}\n' * 130)
            client.wait_settled(130)
        daemon.wait_destination(lambda default: default.ledger.queued == 0)
        with served(daemon.config) as web:
            web.wait_for("Tasks by hour", "130 delivered")
            look_at([{"url": web.url, "width": 1280, "height": 1000, "picture": str(PICTURE)}])


def write_week(directory: Path, now: float) -> None:
    """Write the usage of a week: most builds by day, of which more is cached towards its end."""
    chance = random.Random(11)
    sessions = Sessions()
    for hour in range(HOURS):
        at = now - (HOURS - 1 - hour) * 3600
        local = time.gmtime(at)
        busy = 1 if local.tm_wday > 4 else 14 - abs(local.tm_hour - 13) * 1.4
        for _ in range(max(1, round(chance.gauss(busy, 2)))):
            name = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            count(sessions, _build(chance, name, hour / HOURS), chance.choice(["GITHUB_ACTIONS", None]), at)
    with contextlib.closing(UsageStore.open(directory)) as store, store.transaction():
        store.add(sessions, {name: {} for name in sessions})


def _build(chance: random.Random, session: str, progress: float) -> list[Event]:
    """Return the events of a build; of a few the remote cache does not answer."""
    cached, off = 0.35 + 0.5 * progress + chance.gauss(0, 0.12), chance.random() < 0.02
    events = []
    for _ in range(chance.randrange(20, 140)):
        hash_ = (
            f"{chance.getrandbits(64):016x}" if chance.random() < 0.9 else f"{chance.randrange(9**9, 9**9 + 60):016x}"
        )
        found, seconds = chance.random() < cached, chance.randrange(200, 30_000)
        if found:
            events.append(Event(session, "LOCAL" if chance.random() < 0.4 else "REMOTE", "HIT", hash_, seconds))
        else:
            events.append(Event(session, "LOCAL" if off else "REMOTE", "MISS", hash_, 0))
    return events


if __name__ == "__main__":
    main()
