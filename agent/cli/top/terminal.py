"""The terminal of `top`: one thread draws, waits for a key, a signal or the next moment, and leaves everything as it was."""

import os
import re
import select
import signal
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.cli.top.samples import Sample
from agent.cli.views.output import full_screen
from agent.cli.views.top import Seen, is_paused, screen
from agent.errors import AgentError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.cli.top.asking import Source

KEPT_SAMPLES = 120
NOTICE_SECONDS = 10.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_NOTED = (*_ENDING, signal.SIGWINCH, signal.SIGTSTP)
_QUIT, _ACTIONS = "q", frozenset("prf")
_LONGER_KEYS = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|O[@-~]|.?)")  # arrows, function keys, Alt with another one


class LiveView:
    """What has been seen so far, and what keys do. `keyboard` is the descriptor of a terminal, None without one."""

    def __init__(self, source: "Source", first: Sample, interval: float, keyboard: int | None) -> None:
        self._source = source
        self._interval = interval
        self._keyboard = keyboard
        self._began = first.at
        self._samples = deque([first], KEPT_SAMPLES)
        self._recent = source.recent()
        self._trouble: str | None = None
        self._notice: str | None = None
        self._noticed_at = 0.0

    def run(self) -> int:
        """Show it until somebody has seen enough; return the exit code, that of a signal as a shell has it."""
        while (code := self._show()) is None:
            os.kill(os.getpid(), signal.SIGTSTP)  # which has its own meaning here, on a terminal that is as it was
        return code

    def _show(self) -> int | None:
        """Return the exit code; None if this process is to be suspended."""
        with _noted_signals() as noted, _each_key(self._keyboard), full_screen() as draw:
            next_look = time.monotonic() + self._interval
            while True:
                draw(self._screen)
                sources = [noted] if self._keyboard is None else [noted, self._keyboard]
                readable, _, _ = select.select(sources, [], [], max(next_look - time.monotonic(), 0.0))
                numbers = os.read(noted, 64) if noted in readable else b""
                if ending := [number for number in numbers if number in _ENDING]:
                    return 128 + ending[0]
                if signal.SIGTSTP in numbers:
                    return None
                keys = _typed(self._keyboard) if self._keyboard in readable else ""
                if _QUIT in keys:
                    return 0
                if asked := [key for key in keys if key in _ACTIONS][:1]:
                    self._note(f"{asked[0]} …")
                    draw(self._screen)
                    self._note(self._do(asked[0]))
                if asked or time.monotonic() >= next_look:
                    self._look()
                    next_look = time.monotonic() + self._interval

    def _do(self, key: str) -> str:
        """Do what the screen says that a key does; return what to say of it."""
        paused = is_paused(self._samples[-1].status.destinations.values())
        try:
            match key:
                case "f":
                    return self._source.flush()
                case "p" if not paused:
                    return self._source.pause()
                case _:
                    return self._source.resume()
        except AgentError as error:
            return str(error)

    def _note(self, notice: str) -> None:
        self._notice, self._noticed_at = notice, time.monotonic()

    def _look(self) -> None:
        """Ask for a sample."""
        try:
            self._samples.append(self._source.sample())
            self._trouble = None
        except AgentError as error:
            self._trouble = str(error)
        self._recent = self._source.recent()

    def _screen(self, width: int) -> "RenderableType":
        now = time.monotonic()
        notice = self._notice if now < self._noticed_at + NOTICE_SECONDS else None
        seen = Seen(
            self._samples,
            now=time.time(),
            clock=now,
            began=self._began,
            interval=self._interval,
            width=width,
            recent=self._recent,
            trouble=self._trouble,
            notice=notice,
            keys=self._keyboard is not None,
        )
        return screen(seen)


@contextmanager
def _noted_signals() -> Iterator[int]:
    """Have signals only noted: the descriptor gives their numbers, a byte each."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in _NOTED}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous)
        os.close(reader)
        os.close(writer)


@contextmanager
def _each_key(keyboard: int | None) -> Iterator[None]:
    """Have each key at once, and not shown; Ctrl-C and Ctrl-Z stay signals."""
    if keyboard is None:
        yield
        return
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)


def _typed(keyboard: int) -> str:
    """Return what was typed, without keys that are more than a character; where the terminal is gone, as if to quit."""
    try:
        typed = os.read(keyboard, 64).decode(errors="replace")
    except OSError:  # EIO
        typed = ""
    return _LONGER_KEYS.sub("", typed) if typed else _QUIT
