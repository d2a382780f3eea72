"""Which clients hang up."""

import select
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio


class HangUps:
    """Notices which clients hang up, at once and whatever else is done with their sockets. For `with`.

    It has an epoll instance of its own, which holds a socket only while somebody wants to know. So it costs nothing otherwise,
    and bytes that wait to be read, such as the next request, do not wake it.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}

    async def run(self) -> None:
        """Call back until cancelled."""
        while True:
            await anyio.wait_readable(self._epoll)
            for descriptor, _ in self._epoll.poll(0):
                self._remove(descriptor)()

    def watch(self, connection: socket.socket, callback: Callable[[], object], *, over_tcp: bool) -> None:
        """Call `callback` once the client hangs up, or if it has hung up already, unless it is forgotten before.

        A Unix socket tells that from the end of the client's sending half. TCP does not: there that end counts.
        """
        descriptor = connection.fileno()
        self._callbacks[descriptor] = callback
        # EPOLLHUP and EPOLLERR are always told.
        self._epoll.register(descriptor, select.EPOLLRDHUP if over_tcp else 0)

    def forget(self, connection: socket.socket) -> None:
        """Call back no more for this client."""
        descriptor = connection.fileno()
        if descriptor in self._callbacks:
            self._remove(descriptor)

    def _remove(self, descriptor: int) -> Callable[[], object]:
        self._epoll.unregister(descriptor)
        return self._callbacks.pop(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self._epoll.close()
