"""Newline-delimited lines out of a stream of bytes: joins what reads cut apart, and skips a line that is too long."""

from typing import NamedTuple


class Lines(NamedTuple):
    """Complete lines as one block of bytes, and how many lines were skipped before or in it for being too long."""

    block: bytes
    oversized: int


def as_lines(message: bytes) -> bytes:
    """Return a whole message as complete lines: an unterminated last line is still a line."""
    return message if message.endswith(b"\n") or not message else message + b"\n"


class LineFramer:
    """Cuts one stream into lines of at most `max_line` bytes; holds at most that many bytes between calls.

    Feed it chunks of at most `max_line` bytes: then only a chunk's first line can be longer than a line may be.
    """

    __slots__ = ("_max_line", "_skipping", "_tail")

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line
        self._tail = b""
        self._skipping = False

    def feed(self, chunk: bytes) -> Lines:
        """Take what a read brought; return the lines that it completes."""
        end = chunk.rfind(b"\n") + 1
        if not end:
            return self._no_newline(chunk)
        head, self._tail = self._tail, chunk[end:]
        block = head + chunk[:end] if head else chunk[:end] if self._tail else chunk
        first = block.index(b"\n") + 1
        if self._skipping:
            self._skipping = False
            return Lines(block[first:], 0)
        if first - 1 > self._max_line:
            return Lines(block[first:], 1)
        return Lines(block, 0)

    def end(self) -> Lines:
        """The stream has ended: an unterminated last line is still a line."""
        tail, self._tail = self._tail, b""
        self._skipping = False
        return Lines(tail, 0)

    def _no_newline(self, chunk: bytes) -> Lines:
        if self._skipping:
            return Lines(b"", 0)
        self._tail += chunk
        if len(self._tail) <= self._max_line:
            return Lines(b"", 0)
        self._tail = b""
        self._skipping = True
        return Lines(b"", 1)
