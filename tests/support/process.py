"""A child process whose output is read line by line as it comes, so that a test can wait for a line."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import HUNG_AFTER


class Child:
    """A running process. Its stdout and stderr together are `lines`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"output of {process.pid}")
        self._reader.start()

    @property
    def lines(self) -> list[str]:
        """Every line so far."""
        with self._changed:
            return list(self._lines)

    def wait_for_line(self, pattern: str, timeout: float = HUNG_AFTER) -> re.Match[str]:
        """Block until a line matches; AssertionError with the whole output after `timeout` seconds or at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._find(pattern) is not None, timeout)
            found = self._find(pattern)
            if found is None:
                state = "ended" if self._ended else f"within {timeout} s"
                raise AssertionError(f"no line like {pattern!r}, {state}:\n" + "".join(self._lines))
            return found

    def stop(self, timeout: float = HUNG_AFTER) -> int:
        """Terminate it, kill it if that takes longer than `timeout` seconds, and return its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._reader.join()

    def _find(self, pattern: str) -> re.Match[str] | None:
        return next((match for line in self._lines if (match := re.search(pattern, line))), None)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._add(line)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, line: str) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()


@contextmanager
def running(command: Sequence[str | Path], env: Mapping[str, str]) -> Iterator[Child]:
    """Run a command while the block lasts; it sees PATH and `env`, nothing else of this environment."""
    environment = {"PATH": os.environ["PATH"], **env}
    with subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        child = Child(process)
        try:
            yield child
        finally:
            child.stop()
