"""Counts the calls of a process from within: Python imports this at its start where PYTHONPATH has this directory.

It listens at the socket that COUNT_SOCKET names. A connection begins a count, and its half-close ends it; the answer is JSON.
What is counted are Python functions of files below COUNT_BELOW, each time that one is called or resumed, up to the last call that
wrote to a disk; and what ran in another thread than the main one: each time that such a function had no caller below COUNT_BELOW.
"""

import json
import os
import socket
import sys
import threading
from types import FrameType
from typing import Any, NamedTuple

BELOW = os.environ.get("COUNT_BELOW", "") + os.sep
WRITES = {"fdatasync", "fsync", "pwrite", "pwritev", "rename", "replace", "unlink"}


class Counted(NamedTuple):
    """A call: where the function is, and whether it is where a thread that is not the main one began to run such."""

    file: str
    line: int
    begins: bool


calls: list[Counted] = []
until = 0
recording = False
main_thread = threading.get_ident()


def is_ours(frame: FrameType | None) -> bool:
    """Tell whether a frame is of a function that is to be counted."""
    return frame is not None and frame.f_code.co_filename.startswith(BELOW)


def has_caller(frame: FrameType | None) -> bool:
    """Tell whether any frame from this one outwards is to be counted."""
    while frame is not None:
        if is_ours(frame):
            return True
        frame = frame.f_back
    return False


def profile(frame: FrameType, event: str, arg: Any) -> None:
    """Take a call down."""
    global until  # noqa: PLW0603 - there is one process, and one count of it
    if not recording:
        return
    if event == "call" and is_ours(frame):
        begins = threading.get_ident() != main_thread and not has_caller(frame.f_back)
        calls.append(Counted(frame.f_code.co_filename, frame.f_code.co_firstlineno, begins))
    elif event == "c_call" and arg.__name__ in WRITES and has_caller(frame):
        until = len(calls)


def serve(listening: socket.socket) -> None:
    """Count for one client after the other."""
    global recording, until  # noqa: PLW0603
    while True:
        connection, _ = listening.accept()
        with connection:
            calls.clear()
            until, recording = 0, True
            connection.sendall(b"{}\n")
            connection.recv(1)
            recording = False
            counted = calls[:until]
            figures = {
                "functions": len({(call.file, call.line) for call in counted}),
                "modules": len({call.file for call in counted}),
                "calls": len(counted),
                "trips to a thread": sum(call.begins for call in counted),
            }
            connection.sendall(json.dumps(figures).encode() + b"\n")


if "COUNT_SOCKET" in os.environ:
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.environ.pop("COUNT_SOCKET"))
    server.listen()
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    threading.setprofile(profile)
    sys.setprofile(profile)
