"""What tells a daemon to end or to reload: signals, and the end of the process that started it."""

import signal
from collections.abc import Callable

import anyio
import anyio.abc

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Watches SIGTERM, SIGINT and SIGHUP, and `parent`, a pipe whose other end the starter holds.

    `stop` is set when the daemon is to end. When it is told so twice, `reading` is cancelled, which is for requests, and
    `patience`, which is for delivery: what is not delivered then stays in the queue.
    """

    def __init__(self, parent: int | None) -> None:
        self._parent = parent
        self.stop = anyio.Event()
        self.reading = anyio.CancelScope()
        self.patience = anyio.CancelScope()

    async def watch(
        self, reload: Callable[[], None], *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled; call `reload` for a SIGHUP. It is started when no signal ends the process any more.

        Afterwards the process is about to end, and signals are ignored: nothing that it closes then may be cut short.
        """
        try:
            with anyio.open_signal_receiver(*_WATCHED) as signals:
                task_status.started()
                async for number in signals:
                    if number == signal.SIGHUP:
                        reload()
                    elif self.stop.is_set():
                        self.reading.cancel()
                        self.patience.cancel()
                    else:
                        self.stop.set()
        finally:
            for number in _WATCHED:
                signal.signal(number, signal.SIG_IGN)

    async def watch_parent(self) -> None:
        """Stop when whoever started this daemon is gone, however that came."""
        if self._parent is not None:
            await anyio.wait_readable(self._parent)  # nobody writes there: it is the end
            self.stop.set()
