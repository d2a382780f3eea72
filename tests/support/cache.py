"""Things that are costly to make and that tests only read: made once, by whoever comes first, and kept between runs."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached(name: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """Return the directory that `make` fills, from the cache if it was made before.

    `recipe` is all that the result depends on: another recipe is another directory. `make` gets a path that does not exist.
    Where it raises, nothing is kept.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "artifacts-agent-tests"
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with (cache / f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f"{made.name}.", dir=cache))
            try:
                make(scratch / "made")
                (scratch / "made").rename(made)
            finally:
                shutil.rmtree(scratch)
    return made
