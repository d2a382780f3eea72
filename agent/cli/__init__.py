"""The command line: arguments, output and exit codes."""

import time

STARTED = time.monotonic()  # what is imported from here on can take long on a busy machine

from agent.cli.main import main  # noqa: E402

__all__ = ["STARTED", "main"]
