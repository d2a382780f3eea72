"""System call filters from libseccomp: what systemd applies to a unit, and a brake that lets a system call hang.

As a script it applies what its first argument (JSON) says to itself and then becomes the command in the others, as systemd does:
    {"allowed": [NAME, …], "families": [NUMBER, …], "no_writable_code": true, "hold": [NAME, …], "channel": DESCRIPTOR}
"""

import ctypes
import errno
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

LIBRARY = "libseccomp.so.2"
_ALLOW, _NOTIFY, _ERRNO = 0x7FFF_0000, 0x7FC0_0000, 0x0005_0000
_EQ, _GT, _MASKED_EQ = 4, 6, 7  # enum scmp_compare
_WRITE, _EXEC, _SHM_EXEC = 2, 4, 0o100000
_LAST_FAMILY = 46  # AF_MCTP is 45
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_PATH_BYTES = 4096
# What a queue asks of a disk, and which argument says of which file: a descriptor, or a path.
DISK_CALLS = {
    **dict.fromkeys(("pread64", "pwrite64", "fdatasync", "fsync", "ftruncate", "fstat"), ("descriptor", 0)),
    **dict.fromkeys(("openat", "newfstatat", "unlinkat", "mkdirat", "renameat"), ("path", 1)),
    **dict.fromkeys(("open", "stat", "lstat", "statfs", "unlink", "mkdir", "rename"), ("path", 0)),
}


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Request(ctypes.Structure):  # struct seccomp_notif; the library allocates it
    _fields_ = (
        ("id", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("number", ctypes.c_int),
        ("architecture", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


class _Response(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint64), ("val", ctypes.c_int64), ("error", ctypes.c_int32), ("flags", ctypes.c_uint32))


def load_library() -> ctypes.CDLL:
    """Return libseccomp. Raises OSError where it is not installed."""
    library = ctypes.CDLL(LIBRARY, use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    return library


class _Filter:
    """One filter: `default` for what no rule is about."""

    def __init__(self, default: int) -> None:
        self._library = load_library()
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        array = (_Comparison * len(comparisons))(*(_Comparison(*each) for each in comparisons))
        if number >= 0:  # others are of other architectures
            self._check(
                self._library.seccomp_rule_add_array(
                    self._context, ctypes.c_uint32(action), number, len(comparisons), array
                )
            )

    def load(self) -> None:
        self._check(self._library.seccomp_load(self._context))

    def notifications(self) -> int:
        descriptor: int = self._library.seccomp_notify_fd(self._context)
        return descriptor

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def allow_only(names: Sequence[str]) -> None:
    """What SystemCallFilter= with SystemCallErrorNumber=EPERM does."""
    whitelist = _Filter(_ERRNO | errno.EPERM)
    for name in names:
        whitelist.add(_ALLOW, name)
    whitelist.load()


def allow_families(families: Sequence[int]) -> None:
    """What RestrictAddressFamilies= does."""
    restriction = _Filter(_ALLOW)
    action = _ERRNO | errno.EAFNOSUPPORT
    for family in set(range(_LAST_FAMILY)) - set(families):
        restriction.add(action, "socket", (0, _EQ, family, 0))
    restriction.add(action, "socket", (0, _GT, _LAST_FAMILY - 1, 0))
    restriction.load()


def deny_writable_code() -> None:
    """What MemoryDenyWriteExecute= does."""
    restriction = _Filter(_ALLOW)
    action = _ERRNO | errno.EPERM
    restriction.add(action, "mmap", (2, _MASKED_EQ, _WRITE | _EXEC, _WRITE | _EXEC))
    restriction.add(action, "mprotect", (2, _MASKED_EQ, _EXEC, _EXEC))
    restriction.add(action, "pkey_mprotect", (2, _MASKED_EQ, _EXEC, _EXEC))
    restriction.add(action, "shmat", (2, _MASKED_EQ, _SHM_EXEC, _SHM_EXEC))
    restriction.load()


def hold(names: Sequence[str], channel: int) -> None:
    """Let every call of these names wait for the `Brake` at the other end of `channel`."""
    brake = _Filter(_ALLOW)
    for name in names:
        brake.add(_NOTIFY, name)
    brake.load()
    with socket.socket(fileno=channel) as sender:
        socket.send_fds(sender, [b"."], [brake.notifications()])
    os.close(brake.notifications())


class Brake:
    """Lets a process's calls of some system calls pass, or hang while it is on. For `with`.

    With `under`, only calls of DISK_CALLS hang, those about files in that directory. `arguments` is the script's first argument;
    `descriptor` must be passed to the process.
    """

    def __init__(self, *names: str, under: Path | None = None) -> None:
        self._library = load_library()
        self._under = under
        self._kinds = {
            self._library.seccomp_syscall_resolve_name(name.encode()): DISK_CALLS.get(name) for name in names
        }
        self._ours, self._theirs = socket.socketpair()
        self.descriptor = self._theirs.fileno()
        self.arguments = json.dumps({"hold": names, "channel": self.descriptor})
        self.caught = threading.Event()
        self._lock = threading.Lock()
        self._is_on = False
        self._held: list[int] = []
        self._listener = -1
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="seccomp brake")

    def apply(self) -> None:
        """Let the next calls hang; `caught` is set as soon as one does."""
        with self._lock:
            self._is_on = True

    def release(self) -> None:
        """Let calls go on, also those that hang."""
        with self._lock:
            self._is_on = False
            while self._held:
                self._answer(self._held.pop())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        os.close(self._end)
        self._thread.join()
        os.close(self._ended)
        self._ours.close()
        self._theirs.close()

    def _serve(self) -> None:
        if self._readable(self._ours.fileno()):
            _, (self._listener, *_), _, _ = socket.recv_fds(self._ours, 1, 1)
            while self._readable(self._listener):
                self._pass_or_hold()
            with self._lock:
                self._held.clear()
                os.close(self._listener)

    def _readable(self, descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._ended, select.POLLIN)
        return dict(poll.poll()) == {descriptor: select.POLLIN}  # anything else is the end, here or there

    def _pass_or_hold(self) -> None:
        pointer = ctypes.POINTER(_Request)()
        self._library.seccomp_notify_alloc(ctypes.byref(pointer), None)
        if self._library.seccomp_notify_receive(self._listener, pointer) == 0:
            request = pointer.contents
            with self._lock:
                if self._is_on and self._is_meant(request):
                    self._held.append(request.id)
                    self.caught.set()
                else:
                    self._answer(request.id)
        self._library.seccomp_notify_free(pointer, None)

    def _answer(self, number: int) -> None:
        response = ctypes.POINTER(_Response)()
        self._library.seccomp_notify_alloc(None, ctypes.byref(response))
        response.contents.id, response.contents.flags = number, _CONTINUE
        self._library.seccomp_notify_respond(self._listener, response)
        self._library.seccomp_notify_free(None, response)

    def _is_meant(self, request: _Request) -> bool:
        if self._under is None:
            return True
        kind = self._kinds.get(request.number)
        if kind is None:
            return False
        name, index = kind
        try:
            path = ""
            if name == "path":
                path = _text_at(request.pid, request.arguments[index])
                index = 0
            found = Path(path or f"/proc/{request.pid}/fd/{request.arguments[index]}").resolve()
        except OSError:  # it has ended, or there is no such file
            return False
        return found.is_relative_to(self._under)


def _text_at(pid: int, address: int) -> str:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(_PATH_BYTES).split(b"\0")[0].decode()


def main(policy: dict[str, Any], command: list[str]) -> None:
    """Apply the policy and become the command."""
    if "hold" in policy:
        hold(policy["hold"], policy["channel"])
    if policy.get("no_writable_code"):
        deny_writable_code()
    if "families" in policy:
        allow_families(policy["families"])
    if "allowed" in policy:
        allow_only(policy["allowed"])
    os.execv(command[0], command)  # noqa: S606 - that is what it is for


SCRIPT = Path(__file__)

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
