"""Events as lines that can be sent again, in a file that appears only when it is complete."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

from agent.cli.views.output import say, write
from agent.cli.views.words import amount
from agent.errors import AgentError
from agent.escaping import printable_json
from agent.queue.atomic import Replacement
from agent.queue.filesystem import UNFINISHED, File, Filesystem, OsFilesystem, is_file

if TYPE_CHECKING:
    from agent.events import Event
    from agent.queue.maintenance.browse import Origin

_BUFFER_BYTES = 256 * 1024


_encode = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """Return a value as a line of JSON that commands no terminal on which it is shown."""
    line = _encode(value)
    return line if line.isascii() and b"\x7f" not in line else printable_json(line.decode()).encode()


class Exported(Protocol):
    """What is exported: an event, and where it came from."""

    @property
    def context(self) -> "Origin":
        """The client's context."""

    @property
    def event(self) -> "Event":
        """The event."""


class EventWriter:
    """Writes lines; `count` says how many events so far. With `whole` a line is all that is known of an event."""

    def __init__(self, sink: "Sink", *, whole: bool) -> None:
        self._sink = sink
        self._whole = whole
        self._context: Origin | None = None
        self.count = 0

    def add(self, item: Exported) -> None:
        """Write an event, and before it a context line where the context changes."""
        self.count += 1
        if self._whole:
            self._sink.write(encode(item))
            return
        if item.context != self._context:
            self._context = item.context
            self._sink.write(encode({"context": item.context}))
        self._sink.write(encode(item.event))


class Sink(Protocol):
    """Takes lines."""

    def write(self, line: bytes) -> None:
        """Take a line, without its end."""


class _Stdout:
    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0

    def write(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            write(b"\n".join(self._lines).decode())
        self._lines, self._size = [], 0


class _File:
    def __init__(self, file: File, target: Path) -> None:
        self._file = file
        self._target = target
        self._buffer = bytearray()
        self._size = 0

    def write(self, line: bytes) -> None:
        self._buffer += line + b"\n"
        if len(self._buffer) >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        try:
            self._file.pwrite(bytes(self._buffer), self._size)
        except OSError as error:
            raise AgentError(f"{self._target}: cannot write: {error.strerror}: nothing was exported") from error
        self._size += len(self._buffer)
        self._buffer.clear()


@contextmanager
def standard_output() -> Iterator[Sink]:
    """Yield a sink that writes to standard output."""
    sink = _Stdout()
    yield sink
    sink.flush()


@contextmanager
def writer(target: str, *, force: bool, whole: bool, noun: str) -> Iterator[EventWriter]:
    """Yield what writes to a file, or to standard output for "-"; a file is there, whole, after the block. Raises AgentError."""
    if target == "-":
        with standard_output() as out:
            yield EventWriter(out, whole=whole)
        return
    with Export(OsFilesystem(), Path(target), force=force) as export:
        made = EventWriter(export.sink, whole=whole)
        yield made
        export.finish()
    say(f"{amount(made.count, noun)} exported to {target}")


class Export:
    """A file that gets its name when it is whole. For `with`: leaving it with an error leaves nothing behind."""

    def __init__(self, fs: Filesystem, target: Path, *, force: bool) -> None:
        """Raises AgentError if there is such a file already, unless `force`, or something else, or if none can be made there."""
        self._fs = fs
        self._target = target
        self._force = force
        self._refuse_to_overwrite()
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{UNFINISHED}")
        try:
            self._replacement = Replacement(fs, target, temporary)
        except OSError as error:
            raise AgentError(f"{target}: cannot write there: {error.strerror}") from error
        self.sink = _File(self._replacement.file, target)

    def finish(self) -> None:
        """Give the file its name: from now on it is there, whole, whatever happens. Raises AgentError."""
        self.sink.flush()
        self._refuse_to_overwrite()
        try:
            self._replacement.commit()
        except OSError as error:
            raise AgentError(f"{self._target}: cannot write there: {error.strerror}: nothing was exported") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._replacement.discard()  # which leaves it alone once it has its name

    def _refuse_to_overwrite(self) -> None:
        if self._target.name not in self._names():
            return
        if not self._force:
            raise AgentError(f"{self._target}: already exists: choose another name, or add --force to replace it")
        if not is_file(self._fs, self._target):
            raise AgentError(
                f"{self._target}: is not a regular file, so --force does not replace it: choose another name"
            )

    def _names(self) -> list[str]:
        try:
            return self._fs.names(self._target.parent)
        except OSError as error:
            raise AgentError(f"{self._target}: cannot write there: {error.strerror}") from error
