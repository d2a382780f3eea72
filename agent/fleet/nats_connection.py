"""Connections to NATS, by nats-py: a `Link` is one, and a `Dialer` makes another one when it broke."""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agent.fleet.engine import EngineError, NotPermittedError
from agent.fleet.nats_client import CONNECT_SECONDS, NatsClient
from agent.fleet.nats_errors import engine_error, is_denied, text_of

if TYPE_CHECKING:
    from agent.fleet.nats_credentials import Credentials

T = TypeVar("T")

REQUEST_SECONDS: Final = 5.0
PING_SECONDS: Final = 10
PULL_MARGIN_SECONDS: Final = 1.0  # what a fetch may take longer than it was asked to wait


@dataclass(frozen=True)
class Connection:
    """How to connect: the servers' URLs (nats:// or tls://), a file of credentials if they want some, where to be answered.

    By `inbox` nobody but who may subscribe there can read along; `name` is what the server's own lists show. `timeout`, in
    seconds, is for one call.
    """

    servers: tuple[str, ...]
    credentials: Path | None = None
    inbox: str = "_INBOX"
    name: str = "artifacts-agent"
    timeout: float = REQUEST_SECONDS


class Link:
    """One connection of nats-py, as long as it lives: it is not mended, and nothing is sent on it again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.client = NatsClient()
        self.pulls: dict[tuple[str, str], JetStreamContext.PullSubscription] = {}
        self.error = "the connection is closed"  # or what the server has said last
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._denials = 0
        self._denied = ""  # what the server has said last that it does not permit
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    async def open(self, url: str, credentials: "Credentials | None") -> None:
        """Connect to one server. Raises errors of nats-py's, TimeoutError, OSError, ValueError."""
        await self.client.connect(
            [url],
            name=self._connection.name,
            inbox_prefix=self._connection.inbox,
            user_jwt_cb=None if credentials is None else lambda: credentials.token,
            signature_cb=None if credentials is None else credentials.sign,
            tls=ssl.create_default_context() if url.startswith("tls://") else None,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # without it, and with no reconnecting, nats-py tries for ever
            reconnect_time_wait=0,
            connect_timeout=CONNECT_SECONDS,  # type: ignore[arg-type]  # it takes fractions
            ping_interval=PING_SECONDS,
            pending_size=-1,  # nothing is kept for later while there is no connection
            error_cb=self._note_error,
            closed_cb=self._note_closed,
        )
        self.stream = self.client.jetstream(timeout=self._connection.timeout)

    @property
    def is_open(self) -> bool:
        """Whether calls may be made on it."""
        return self.client.is_connected and not self._broken.done()

    async def call(self, call: Coroutine[Any, Any, T], subject: str = "") -> T:
        """Return what a call to the server returns. Raises EngineError.

        With the `subject` that it asks on, a denial is known at once; else when the call has waited in vain.
        """
        denials = self._denials
        try:
            return await self._run(call, subject)
        except TimeoutError:  # nats-py's own timeouts are these, too
            self._raise_if_denied_since(denials)
            await self._close_if_deaf()
            raise EngineError(f"no answer within {self._connection.timeout:g} s") from None
        except nats.errors.ConnectionClosedError:
            raise EngineError(self._why_closed) from None
        except (nats.errors.Error, OSError, ValueError) as error:
            raise engine_error(error) from None

    async def pull(self, pull: JetStreamContext.PullSubscription, most: int, seconds: float) -> Sequence[Msg]:
        """Return what a consumer delivers next, at most so many; none if there are none within `seconds`. Raises EngineError."""
        denials = self._denials

        async def fetched() -> Sequence[Msg]:
            async with asyncio.timeout(seconds + PULL_MARGIN_SECONDS):
                return await pull.fetch(most, timeout=seconds)

        try:
            return await self._run(fetched())
        except TimeoutError:  # nothing came, or the server is gone, which the next ping will show
            self._raise_if_denied_since(denials)
            return []
        except nats.errors.ConnectionClosedError:
            raise EngineError(self._why_closed) from None
        except (nats.errors.Error, OSError, ValueError) as error:
            raise engine_error(error) from None

    async def tell(self, subject: str, text: bytes) -> None:
        """Send what nobody answers: it is on its way soon, and may be lost. Raises EngineError."""
        try:
            await self.client.publish(subject, text)  # into a buffer, which has no limit: there is nothing to wait for
        except nats.errors.Error as error:
            raise engine_error(error) from None

    async def close(self) -> None:
        """Close it, whatever state it is in."""
        await self._note_closed()
        with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
            await self.client.close()

    async def _run(self, call: Coroutine[Any, Any, T], subject: str = "") -> T:
        """Return what a call returns. Raises EngineError when the connection breaks, or the server denies the subject."""
        subject = subject.lower()  # as nats-py has what the server says
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(subject, []).append(denied)
        task = asyncio.ensure_future(call)
        task.add_done_callback(_retrieve_error)
        try:
            first: set[asyncio.Future[Any]] = {task, self._broken, denied}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if denied.done():
                raise NotPermittedError(self._denied)
            raise EngineError(self._why_closed)
        finally:
            task.cancel()
            waiting = self._waiting.get(subject, [])
            if denied in waiting:
                waiting.remove(denied)
            if not waiting:
                self._waiting.pop(subject, None)

    @property
    def _why_closed(self) -> str:
        """Why the connection is closed: by the server's last word, of which nats-py tells no callback, if it said one."""
        found = self.client.last_error
        return text_of(found) if type(found) is nats.errors.Error else self.error

    def _raise_if_denied_since(self, denials: int) -> None:
        """Raise NotPermittedError if the server has denied something since: it says so, but not to which call."""
        if self._denials != denials:
            raise NotPermittedError(self._denied) from None

    async def _close_if_deaf(self) -> None:
        try:
            await self._run(self.client.flush(timeout=1))
        except (TimeoutError, nats.errors.Error, EngineError):
            await self.close()

    async def _note_error(self, error: Exception) -> None:
        text = text_of(error)
        self.error = text
        if "permissions violation" in text:
            subject = text.partition('"')[2].rpartition('"')[0]
            self._denials, self._denied = self._denials + 1, text
            for waiting in self._waiting.pop(subject, ()):
                if not waiting.done():
                    waiting.set_result(None)

    async def _note_closed(self) -> None:
        if not self._broken.done():
            self._broken.set_result(None)


def _retrieve_error(task: asyncio.Future[Any]) -> None:
    """Ask a call that was given up for its error, so that asyncio does not report it as one that nobody has seen."""
    if not task.cancelled():
        task.exception()


class Dialer:
    """Has one link at a time, to any of the servers; makes it when it is first wanted, and another one when it broke."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers = itertools.cycle(SystemRandom().sample(connection.servers, len(connection.servers)))
        self._connecting = asyncio.Lock()
        self._link: Link | None = None
        self._closed = False

    async def link(self) -> Link:
        """Return a link that is open. Raises EngineError."""
        if self._link is not None and self._link.is_open:
            return self._link
        async with self._connecting:
            if self._link is not None and self._link.is_open:
                return self._link
            if self._closed:
                raise EngineError("closed")
            await self._give_up()
            self._link = await self._connect()
            return self._link

    async def aclose(self) -> None:
        """Close the link, and make no other."""
        self._closed = True
        await self._give_up()

    async def _connect(self) -> Link:
        """Try each server once, beginning with the next one. Raises EngineError."""
        error: EngineError = EngineError("no server is configured")
        file = self._connection.credentials
        credentials = _credentials(file) if file is not None else None  # each time: it may have been renewed
        for _ in self._connection.servers:
            url, link = next(self._servers), Link(self._connection)
            try:
                async with asyncio.timeout(2 * CONNECT_SECONDS):
                    await link.open(url, credentials)
            except (TimeoutError, nats.errors.Error, OSError, ValueError) as failure:
                said = text_of(failure)
                if isinstance(failure, nats.errors.NoServersError | asyncio.TimeoutError):
                    said = link.error  # what it has tried says more
                await link.close()
                kind = NotPermittedError if is_denied(failure, said) else EngineError
                error = kind(f"{_without_password(url)}: {said}")
            else:
                return link
        raise error

    async def _give_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()


def _credentials(file: Path) -> "Credentials":
    """Return what is in a file of credentials. Raises NotPermittedError, which says what is wrong with it."""
    try:
        from agent.fleet.nats_credentials import read_credentials  # here: whoever needs none need not load what signs

        return read_credentials(file)
    except OSError as error:
        raise NotPermittedError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise NotPermittedError(f"{file}: {error}") from None


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
