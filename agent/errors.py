"""The errors that the agent raises on purpose, each with the exit code of the command that it ends.

    AgentError                    1   any other error
    ├── DeadlineError             3   a deadline passed before the work was done
    ├── NotRunningError           4   no daemon answers on the control socket
    ├── QueueLockedError          5   another daemon owns the queue directory
    ├── ListenError               6   a socket cannot be opened (too long, taken, not writable)
    ├── StorageError              7   the queue directory cannot be read or written
    ├── UndeliveredError          8   events were dead-lettered or dropped
    └── ConfigError              78   configuration or token is wrong (EX_CONFIG of sysexits.h)

A message says in one line what is wrong, where, and what to do about it. It never contains a secret.
"""


class AgentError(Exception):
    """The base class. Each error has a message for the operator and an `exit_code`."""

    exit_code = 1


class DeadlineError(AgentError):
    """A deadline passed before the work was done. Nothing is lost."""

    exit_code = 3


class NotRunningError(AgentError):
    """No daemon answers on the control socket."""

    exit_code = 4


class QueueLockedError(AgentError):
    """Another daemon owns the queue directory."""

    exit_code = 5


class ListenError(AgentError):
    """A socket cannot be opened: its path is too long, taken by a live process, or not writable."""

    exit_code = 6


class StorageError(AgentError):
    """A queue file could not be read or written; `__cause__` is the operating system's error."""

    exit_code = 7


class UndeliveredError(AgentError):
    """Some of the events that a command waited for were dead-lettered or dropped."""

    exit_code = 8


class ConfigError(AgentError):
    """The configuration or the token is wrong."""

    exit_code = 78
