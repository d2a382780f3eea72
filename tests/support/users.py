"""Running something as another user, who may read what root may: the interpreter is often in a directory of root's."""

from pathlib import Path

from tests.support.tools import require_root, require_tool

NOBODY = 65534


def as_user(uid: int, gid: int | None = None) -> list[str | Path]:
    """Return what to put before a command so that it is this user's, with one group, by default of the same number."""
    require_root()
    setpriv = require_tool("setpriv", "apt-get install util-linux")
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [setpriv, f"--reuid={uid}", f"--regid={uid if gid is None else gid}", "--clear-groups", *reading]
