"""The queue in which the kernel keeps those who have connected until they are accepted: how many come, and how many may wait."""

import contextlib
import errno
import socket

import anyio

# After so many without an end to those who wait, they are a crowd.
CROWD = 256
# No more can wait to be accepted than what a socket is opened with, here or by systemd.
BACKLOG = 4096
# After so many without an end, no more than CROWDED_BACKLOG may wait: whoever fills the line makes it long for everybody, and it
# drains no faster for that. Who would wait longer waits to connect; who does not want to wait finds it full either way.
LONG_CROWD = 1024
CROWDED_BACKLOG = 256
CALM_SECONDS = 2.0
# So many are accepted in a turn, before others have theirs; fewer while a crowd waits, and fewest when its queue is short: then
# everybody else waits longer for the turns than for a place in the queue.
TURN_CLIENTS = 32
CROWD_TURN_CLIENTS = 16
SHORT_TURN_CLIENTS = 8

NOBODY_WAITS = frozenset({errno.EAGAIN, errno.EINVAL})  # EINVAL: the socket is shut down


class AcceptQueue:
    """Those who wait at a listening socket to be accepted. `crowd` is how many were since the last time that nobody waited.

    After LONG_CROWD of them the queue is short, until it has not been longer than a turn for CALM_SECONDS.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        # `socket.accept` asks for them for each client, as enums, which takes longer than all else that it does.
        self._kind = int(listening.family), int(listening.type), listening.proto
        self.accepted = 0
        self.crowd = 0
        self._short_since: int | None = None  # of `accepted`
        self._calm_at = 0.0

    @property
    def most_waiting(self) -> int:
        """No more than so many can wait now."""
        if self._short_since is None:
            return BACKLOG
        return max(CROWDED_BACKLOG, BACKLOG - (self.accepted - self._short_since))

    @property
    def crowded(self) -> bool:
        """Whether a crowd waits, or has lately."""
        return self.crowd > CROWD or self._short_since is not None

    @property
    def turn(self) -> int:
        """How many are to be accepted in a turn."""
        if not self.crowded:
            return TURN_CLIENTS
        return CROWD_TURN_CLIENTS if self.most_waiting > CROWDED_BACKLOG else SHORT_TURN_CLIENTS

    async def wait(self) -> None:
        """Return when somebody waits."""
        with anyio.move_on_at(float("inf") if self._short_since is None else self._calm_at):
            await anyio.wait_readable(self.listening)
            return
        self.lengthen()
        await anyio.wait_readable(self.listening)

    def accept(self, most: int, now: float) -> tuple[list[socket.socket], OSError | None]:
        """Accept at most so many of those who wait; return why no more could be, None if there may be more."""
        found: list[socket.socket] = []
        problem = None
        try:
            while len(found) < most:
                descriptor, _ = self.listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001
                found.append(socket.socket(*self._kind, fileno=descriptor))
        except OSError as error:
            problem = error
        self.accepted += len(found)
        if problem is None:
            self.crowd += len(found)
            self._calm_at = now + CALM_SECONDS
        elif problem.errno in NOBODY_WAITS:
            self.crowd = 0
            if self._short_since is not None:  # who came before that has been accepted
                self._short_since = min(self._short_since, self.accepted - BACKLOG)
        # A full backlog of TCP answers nobody, and clients then wait for a second or longer.
        if self._short_since is None and self.crowd >= LONG_CROWD and self.listening.family == socket.AF_UNIX:
            self._short_since = self.accepted
            self._set_length(CROWDED_BACKLOG)
        elif now >= self._calm_at:
            self.lengthen()
        return found, problem

    def lengthen(self) -> None:
        """Let as many wait as at first."""
        if self._short_since is not None:
            self._short_since = None
            self._set_length(BACKLOG)

    def _set_length(self, length: int) -> None:
        with contextlib.suppress(OSError):  # EINVAL: the socket is shut down, and takes nobody any more
            self.listening.listen(length)
