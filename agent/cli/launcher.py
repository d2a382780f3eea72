"""Starts the `artifacts-agent` command so that the working directory and PYTHONPATH cannot replace one of its modules.

The package's import name is `agent`, which many repositories have, too; and builds often run with PYTHONPATH=. in a directory
that may well hold a `queue.py` or a `json.py`. So this file is installed beside the package as the module `artifacts_agent`, a
name that is ours alone, and imports nothing that the interpreter has not loaded before it.
"""

import os
import sys


def main() -> int:
    """Run the command that `sys.argv` names; return its exit code."""
    search_pythonpath_last()
    from agent.cli import main as run

    return run()


def search_pythonpath_last() -> None:
    """Move what PYTHONPATH has added to the end of `sys.path`, behind the standard library and what is installed.

    If this installation is itself found by PYTHONPATH, its directory comes before the other ones.
    """
    value = os.environ.get("PYTHONPATH")
    if not value or sys.flags.ignore_environment:
        return
    added = {os.path.abspath(entry) for entry in value.split(os.pathsep)}  # an empty entry is the working directory
    home = os.path.dirname(os.path.abspath(__file__))
    sys.path.sort(key=lambda entry: (entry in added, entry != home and entry in added))


if __name__ == "__main__":
    sys.exit(main())
