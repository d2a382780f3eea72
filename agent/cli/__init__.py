"""The command line: arguments, output and exit codes."""

import sys
import time

STARTED = time.monotonic()  # what is imported from here on can take long on a busy machine


def main() -> int:
    """Run the command that `sys.argv` names; return its exit code."""
    from agent.cli import first_process

    first_process.prepare(sys.argv)
    from agent.cli.main import main as run

    return run()
