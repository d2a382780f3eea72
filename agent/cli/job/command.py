"""The command that `exec` runs: started as by a shell, given the signals that are sent to `exec`, and waited for.

The command is in the same process group as `exec`, so that a terminal treats both as one job: Ctrl-C, Ctrl-Z and `fg` reach the
command from the terminal itself. What a process sends to `exec` alone is passed on.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Mapping, Sequence

from agent.errors import AgentError

NOT_FOUND, NOT_EXECUTABLE = 127, 126
PASSED_ON = frozenset(
    (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
)
AWAITED = PASSED_ON | {signal.SIGCHLD}
_SHELL = "/bin/sh"
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


class CommandError(AgentError):
    """The command cannot be started."""

    def __init__(self, command: str, error: OSError) -> None:
        missing = isinstance(error, FileNotFoundError)
        super().__init__(f"{command}: {'command not found' if missing else error.strerror}")
        self.exit_code = NOT_FOUND if missing else NOT_EXECUTABLE


def run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end; return its exit code, or -N if signal N ended it. Raises CommandError.

    As PID 1 of a container it reaps meanwhile whatever else ends: orphans, which nobody else waits for.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored there is nothing to wait for
    try:
        try:
            # What else is ignored, such as SIGHUP under nohup, stays so, and open files are inherited: make's jobserver is one.
            pid = _spawn(command, environ, before)
        except OSError as error:
            raise CommandError(command[0], error) from error
        return _wait(pid)
    finally:
        signal.signal(signal.SIGCHLD, inherited)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _spawn(command: Sequence[str], environ: Mapping[str, str], mask: Iterable[int]) -> int:
    """Start a command; what is neither a program nor says which one reads it is a shell's script, as execvp(3) has it."""
    try:
        return os.posix_spawnp(command[0], list(command), environ, setsigmask=mask, setsigdef=_PYTHON_IGNORES)
    except OSError as error:
        import shutil  # for a script that names no program

        script = shutil.which(command[0])
        if error.errno != errno.ENOEXEC or script is None:
            raise
    words = [_SHELL, script, *command[1:]]
    return os.posix_spawn(_SHELL, words, environ, setsigmask=mask, setsigdef=_PYTHON_IGNORES)


def _wait(pid: int) -> int:
    while True:
        info = signal.sigwaitinfo(AWAITED)
        if info.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if os.getpid() == 1:
                _reap_others(pid)
        elif (
            info.si_code <= 0 and info.si_pid != pid
        ):  # sent by a process: what the kernel sends, the whole group has got
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, info.si_signo)


def _reap_others(pid: int) -> None:
    """Reap every child that has ended, up to the command, whose signal is still to come.

    It may be the agent: `Popen` puts up with that, and the agent's end is seen by its pidfd.
    """
    while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if ended.si_pid == pid:
            return
        with contextlib.suppress(ChildProcessError):  # the agent, and another thread was faster
            os.waitpid(ended.si_pid, os.WNOHANG)


def end_as(code: int) -> int:
    """Return an exit code, or end by the signal -code, so that the parent sees how the command itself ended.

    Returns 128 + N for signal N where that is not possible, as for the first process of a container.
    """
    if code >= 0:
        return code
    import resource  # for a command that a signal has ended

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP have no handlers
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(os.getpid(), -code)
    return 128 - code
