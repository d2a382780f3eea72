"""A directory for the files and sockets of the targets; it goes with the process."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch() -> Path:
    """Return the directory."""
    path = Path(tempfile.mkdtemp(prefix="artifacts-agent-fuzz-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
