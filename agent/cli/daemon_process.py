"""Making a daemon of this process: for `run`, and for the agent that `exec` starts. It does without click."""

import gc
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import cast


def prepare(path: Path | None) -> Callable[[Mapping[str, str], int | None], None]:
    """Import what a daemon takes while the configuration at `path` is loaded; return what runs it: see `agent.daemon.app.run`.

    It takes the environment, and the pipe whose end is the daemon's.
    """
    _start_lean(os.environ)
    from agent import config
    from agent.config.apart import LoadingApart

    load = partial(config.load, path, os.environ)
    loading = LoadingApart(load)  # before the other imports, so that both go on at once
    from agent.daemon import app

    if sys.modules["click"] is None:
        del sys.modules["click"]  # if the daemon ends with an error, it says so by click
    return partial(app.run, loading.result, load)


def _start_lean(environ: MutableMapping[str, str]) -> None:
    """Keep libraries from importing, only because it is there, what a daemon has no use for: that is memory and time.

    httpx and structlog take click, rich and pygments if they can, httpcore takes trio; what is None in `sys.modules` cannot be
    imported (https://docs.python.org/3/reference/import.html#the-module-cache). pydantic looks through all installed packages for
    plugins (https://docs.pydantic.dev/latest/concepts/plugins/).
    """
    for name in ("click", "pygments", "rich", "trio"):
        sys.modules.setdefault(name, cast(ModuleType, None))
    environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()  # until all is imported: of that nothing goes again
