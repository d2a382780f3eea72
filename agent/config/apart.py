"""Loads a configuration in a process of its own: what that takes to import is ready sooner, and gone from memory afterwards."""

import contextlib
import os
import pickle
from collections.abc import Callable
from typing import BinaryIO

from agent.config.schema import Config
from agent.errors import ConfigError


class LoadingApart:
    """Calls `load` in a child, which is forked at once: for a process that has no other thread so far."""

    def __init__(self, load: Callable[[], Config]) -> None:
        self._load = load
        self._pid = 0
        self._answer: BinaryIO | None = None
        with contextlib.suppress(OSError):  # no file or no process to be had: `result` does without
            reading, writing = os.pipe()
            self._answer = os.fdopen(reading, "rb")
            with os.fdopen(writing, "wb") as answer:
                self._pid = os.fork()
                if self._pid == 0:
                    _load_and_exit(load, answer)

    def result(self) -> Config:
        """Wait for it, and return what `load` returns; to be called once. Raises ConfigError as `load` does.

        Where the child came to nothing, it is loaded in this process, where a failure is seen.
        """
        answer = b""
        if self._answer is not None:
            with self._answer:
                answer = self._answer.read()
        if self._pid:
            with contextlib.suppress(ChildProcessError):  # the first process of a container has its children reaped
                os.waitpid(self._pid, 0)
        if not answer:
            return self._load()
        found: Config | ConfigError = pickle.loads(answer)  # noqa: S301 - this process's own child wrote it
        if isinstance(found, ConfigError):
            raise found
        return found


def _load_and_exit(load: Callable[[], Config], answer: BinaryIO) -> None:
    try:
        found: Config | ConfigError
        try:
            found = load()
        except ConfigError as error:
            found = error
        answer.write(pickle.dumps(found))
        answer.flush()
    finally:
        os._exit(0)  # without what else this process would do at its end
