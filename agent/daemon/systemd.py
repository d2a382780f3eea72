"""Telling systemd how the daemon is doing: the protocol of sd_notify(3) and sd_watchdog_enabled(3)."""

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio


class Notifier:
    """Sends notifications to `$NOTIFY_SOCKET`; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environ.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = (int(microseconds) / 1e6 if for_us and microseconds.isdigit() else 0) or None

    def notify(self, *assignments: str) -> None:
        """Send assignments such as `READY=1`. No OSError stops the daemon, be the supervisor gone or the files used up."""
        if not self._address:
            return
        with contextlib.suppress(OSError):  # the watchdog tells systemd what a lost notification would have
            self._send("\n".join(assignments).encode())

    async def feed_watchdog(self, write_paths: Sequence[Callable[[], Awaitable[object]]]) -> None:
        """Tell systemd again and again that the daemon is alive, but only as long as every write path answers."""
        if self.watchdog_seconds is None:
            return
        while True:
            for answers in write_paths:
                await answers()
            self.notify("WATCHDOG=1")
            await anyio.sleep(self.watchdog_seconds / 3)

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message, self._address)
