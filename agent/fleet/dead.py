"""What relays put into AA_DEAD: refused events, each as `agent.queue.dead_letters` has it, and messages that say nothing.

An event's id is `<subject>:<queue>:<seq>`, so that one that comes twice is kept once, and no pool's for another one's. A message
that cannot be read is kept as it is.
"""

import re
from collections.abc import Mapping
from typing import Final

from agent.fleet.engine import Message
from agent.queue.dead_letters import DeadLetter, encode_dead_letter

KIND: Final = "AA-Dead"
EVENT: Final = "event"
MESSAGE: Final = "message"
SUBJECT: Final = "AA-Subject"
QUEUE: Final = "AA-Queue"
REASON: Final = "AA-Reason"
SEQ: Final = "AA-Seq"
TRUNCATED: Final = "AA-Truncated"
MAX_REASON = 200
MOST_KEPT_OF_HEADERS = 32 * 1024
"""Bytes of a message's own headers; JetStream takes 64 KiB in all."""

_KEPT_FOR_HEADERS = 4096
_is_name = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


def of_event(subject: str, queue: str, letter: DeadLetter) -> tuple[bytes, dict[str, str]]:
    """Return the message of a refused event: `letter.seq` is its number in the queue that published it on `subject`."""
    headers = {"Nats-Msg-Id": f"{subject}:{queue}:{letter.seq}", KIND: EVENT, SUBJECT: subject, QUEUE: queue}
    return encode_dead_letter(letter), headers


def of_message(message: Message, reason: str, max_payload: int) -> tuple[bytes, dict[str, str]]:
    """Return the message that keeps one that cannot be read, with its headers if there is room, and as much of its body."""
    own = {
        "Nats-Msg-Id": f"message:{message.seq}",
        KIND: MESSAGE,
        SUBJECT: message.subject,
        REASON: _printable(reason),
        SEQ: str(message.seq),
    }
    # The client refuses other names, and for ever.
    theirs = {f"Original-{name}": value for name, value in message.headers.items() if _is_name(name)}
    if _size(theirs) > MOST_KEPT_OF_HEADERS:
        theirs = {}
    if len(message.body) + _size(own | theirs) <= max_payload:
        return message.body, own | theirs
    room = max(max_payload - _KEPT_FOR_HEADERS, 0)
    return message.body[:room], own | ({TRUNCATED: str(len(message.body))} if len(message.body) > room else {})


def _size(headers: Mapping[str, str]) -> int:
    return 64 + sum([len(name) + len(value.encode()) + 4 for name, value in headers.items()])


def _printable(text: str) -> str:
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in text)[:MAX_REASON]
