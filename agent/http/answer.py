"""An answer as it comes from a server, piece by piece: its head, its body, and whether anything has come behind it.

The parser is llhttp, by httptools, which tells what it found and not where. It skips line ends between two answers, takes other
protocols for HTTP, and does not know that answers to HEAD have no body, nor what the end of the connection means: that is known
here.
"""

import httptools
import httpx

_VERSIONS = (b"HTTP/1.1 ", b"HTTP/1.0 ")


class Answer:
    """The answer to a request with `method`. Feed it what comes; its head is known when it `has_head`.

    `is_whole` says that its end has come, `has_surplus` that something came behind that. `is_last` says that the connection
    cannot have another one. Methods that begin with `on_` are called by the parser.
    """

    def __init__(self, method: str) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_whole = False
        self.has_surplus = False
        self.is_last = False
        self._has_body = method != "HEAD"
        self._has_length = False
        self._codings: list[bytes] = []
        self._pieces: list[bytes] = []
        self._begun = bytearray()  # what has come until there is a head, with the informational ones before it
        self._heads = 0  # how many these are
        self._invalid = ""  # what is wrong with them
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # Blanks behind the size of a chunk; and an answer behind an informational one that says the connection ends (llhttp then
        # reads on behind the answer, too, as ever: `has_surplus`).
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True, lenient_keep_alive=True)

    def feed(self, data: bytes) -> None:
        """Take what has come, b"" at the end of the connection, of an answer that is not whole.

        Raises httpx.RemoteProtocolError for what is no answer, or ends within one.
        """
        if not data or self._parser is None:
            self._end()
            return
        if not self.has_head:
            self._begun += data
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_whole:
                raise httpx.RemoteProtocolError(f"invalid answer: {error}") from error
            self.has_surplus = True
        self._check_heads()
        if self._codings and self._codings != [b"chunked"]:
            raise httpx.RemoteProtocolError("of all transfer codings its answer may have chunked alone")
        if self.is_whole:
            self.has_surplus = self.has_surplus or self._has_line_end_behind(data)
            self._parser = None  # which refers to this answer

    def _check_heads(self) -> None:
        """Raise httpx.RemoteProtocolError if a head is not HTTP/1.1's, nor HTTP/1.0's, or informational and with a body."""
        if self._invalid:
            raise httpx.RemoteProtocolError(f"invalid answer: {self._invalid}")
        if self.has_head and self._begun:
            heads, self._begun = self._begun.split(b"\r\n\r\n", self._heads)[: self._heads], bytearray()
            if not all(head.startswith(_VERSIONS) for head in heads):
                raise httpx.RemoteProtocolError("invalid answer: it is no HTTP/1.1")

    def take(self) -> bytes:
        """Return what has come of the body since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _end(self) -> None:
        """Of an answer whose length nobody said, the end of the connection is the end."""
        if not self.has_head:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        if self._has_length or self._codings:
            raise httpx.RemoteProtocolError("the connection ended before its answer did")
        self.is_whole = True

    def _has_line_end_behind(self, data: bytes) -> bool:
        """Tell whether the last data ends with a line end more than the answer, which ends with its body or an empty line."""
        if self._pieces and not self._codings:
            return not data.endswith(self._pieces[-1])
        return data.endswith(b"\r\n\r\n\r\n")

    def on_message_begin(self) -> None:
        """An answer begins, or one before it, or one too many."""
        self.has_surplus = self.is_whole

    def on_status(self, reason: bytes) -> None:
        """A part of the reason phrase."""
        if not self.has_head:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody wants."""
        if not self.has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is whole: that of the answer, or of an informational one before it."""
        if self.has_head or self._parser is None:
            return
        self._heads += 1
        status = self._parser.get_status_code()
        self.is_last |= not self._parser.should_keep_alive()
        if status < 100:
            self._invalid = "its status is below 100"
        if status < 200:
            self.reason, self.headers = b"", []
            return
        self.status, self.has_head = status, True
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"transfer-encoding":
                self._codings.append(value.rstrip(b" ").lower())  # with a tab behind it llhttp takes it for another one
            elif lower == b"content-length":
                self._has_length = True
        # llhttp leaves the blanks behind a value, which are no part of it (RFC 9112, 5).
        self.headers = [(name, value.rstrip(b" \t")) for name, value in self.headers]
        self.is_whole = not self._has_body
        self.is_last |= self.is_whole and bool(
            self._codings
        )  # the parser waits for chunks, and some servers send the last one

    def on_body(self, piece: bytes) -> None:
        """A piece of the body, or of one that the answer cannot have."""
        if self.is_whole:
            self.has_surplus = True
        elif not self.has_head:
            self._invalid = "an informational answer has a body"
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """An answer is whole, if it was not an informational one."""
        self.is_whole = self.has_head
