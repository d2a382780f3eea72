"""What systemd's journal takes of a line besides its text: the priority, see sd-daemon(3). Quick to import: commands need it."""

import os
from collections.abc import Mapping
from typing import Final

STANDARD_ERROR: Final = 2
_ERROR: Final = 3
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": _ERROR}  # syslog(3)


def is_journal(environ: Mapping[str, str], descriptor: int = STANDARD_ERROR) -> bool:
    """Tell whether what is written to a descriptor goes to the journal, as systemd.exec(5) says of JOURNAL_STREAM."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def priority(level: str) -> str:
    """Return what stands before a line of this level; what is called by another name than a level is an error."""
    return f"<{_PRIORITIES.get(level, _ERROR)}>"


def with_priority(text: str, level: str) -> str:
    """Return lines with their priority before each."""
    prefix = priority(level)
    return "".join(prefix + line for line in text.splitlines(keepends=True))
