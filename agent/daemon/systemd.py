"""Telling systemd how the daemon is doing: the protocol of sd_notify(3) and sd_watchdog_enabled(3)."""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping

import anyio

from agent.delivery.pipeline import Pipeline
from agent.rules import DEFAULT

SHOW_SECONDS = 1.0  # between two looks at what has changed
LOOK_SECONDS = 30.0  # between two looks where nothing has
MAX_STATUS = 500  # characters


class Notifier:
    """Sends notifications to `$NOTIFY_SOCKET`; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.get("WATCHDOG_USEC", "")
        self.has_listener = bool(path)
        self._phase = ""
        self._trouble: dict[str, str] = {}
        self.watchdog_seconds = (int(microseconds) / 1e6 if for_us and microseconds.isdigit() else 0) or None

    def notify(self, *assignments: str) -> None:
        """Send assignments such as `READY=1`. No OSError stops the daemon, be the supervisor gone or the files used up."""
        if not self._address:
            return
        with contextlib.suppress(OSError):  # the watchdog tells systemd what a lost notification would have
            self._send("\n".join(assignments).encode())

    def enter(self, phase: str, *assignments: str) -> None:
        """Send assignments such as `READY=1`, and show what the daemon does from now on."""
        self._phase = phase
        self.notify(*assignments, f"STATUS={status_line(phase, self._trouble.values())}")

    def show(self, about: str, trouble: str | None) -> None:
        """Show a trouble until there is another one, or None, about the same; not before the first phase is entered."""
        before = dict(self._trouble)
        self._trouble.pop(about, None)
        if trouble is not None:
            self._trouble[about] = trouble
        if self._phase and before != self._trouble:
            self.notify(f"STATUS={status_line(self._phase, self._trouble.values())}")

    async def feed_watchdog(self, write_path: Callable[[], Awaitable[object]]) -> None:
        """Tell systemd again and again that the daemon is alive, but only as long as the write path answers."""
        if self.watchdog_seconds is None:
            return
        while True:
            await write_path()
            self.notify("WATCHDOG=1")
            await anyio.sleep(self.watchdog_seconds / 3)

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message, self._address)


def status_line(phase: str, trouble: Iterable[str]) -> str:
    """Return what `systemctl status` shows, on one line: what is wrong, or else what the daemon does."""
    text = "; ".join(trouble) or phase
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_STATUS else f"{line[: MAX_STATUS - 1]}…"


async def show_trouble(notifier: Notifier, name: str, pipeline: Pipeline) -> None:
    """Let systemd show what keeps a pipeline from storing or delivering, until cancelled."""
    whose = "" if name == DEFAULT else f"{name}: "
    while notifier.has_listener:
        seen = pipeline.changed.count
        error, trouble = pipeline.storage_error, pipeline.trouble()
        notifier.show(f"storage of {name}", error and f"{whose}storage: {error}")
        notifier.show(f"delivery of {name}", trouble and f"{whose}{trouble}")
        await anyio.sleep(SHOW_SECONDS)
        await pipeline.changed.wait(seen=seen, seconds=LOOK_SECONDS)
