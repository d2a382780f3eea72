"""The process of the agent that `exec` starts for its job: `python -m agent.cli.job.process RUNTIME CONFIG NAME:NUMBER…`.

RUNTIME is the directory for its sockets, CONFIG the configuration file or empty, NUMBER the descriptor of a socket that listens
already. Standard input is a pipe: when `exec` is gone it ends, and so does the agent.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.cli import daemon_process
from agent.errors import AgentError

FIRST_PASSED_FD = 3  # see sd_listen_fds(3)


def main() -> int:
    """Run the agent; return its exit code."""
    runtime, path, *sockets = sys.argv[1:]
    environ = os.environ | _as_systemd_passes(sockets)  # first of all, as no other file may take their numbers
    try:
        run = daemon_process.prepare(Path(path) if path else None)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # `exec` has blocked what is for its command
        run(environ, sys.stdin.fileno())
    except (AgentError, ExceptionGroup) as error:
        from agent.cli.problems import report

        return report(error)
    finally:
        import shutil

        shutil.rmtree(runtime, ignore_errors=True)
    return 0


def _as_systemd_passes(sockets: Sequence[str]) -> dict[str, str]:
    """Give descriptors, each as NAME:NUMBER, the numbers that systemd would, and return the variables that it would set."""
    found = sorted((int(number), name) for name, _, number in (text.partition(":") for text in sockets))
    for wanted, (number, _) in enumerate(found, FIRST_PASSED_FD):  # in this order none takes the place of another one
        if number != wanted:
            os.dup2(number, wanted, inheritable=False)
            os.close(number)
    names = ":".join(name for _, name in found)
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(found)), "LISTEN_FDNAMES": names}


if __name__ == "__main__":
    sys.exit(main())
