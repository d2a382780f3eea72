"""What became of the events that `emit` was given, and the exit code for it. Standard library only."""

from collections import Counter

from agent.errors import AgentError, NotRunningError

NAMED_REJECTS = 10
_NO_DAEMON = {"absent", "denied", "disabled"}


class EmitReport:
    """Counts: `unsent` by the client's reason, `rejected` lines; `rejects` names the first of them by line and reason."""

    def __init__(self) -> None:
        self.unsent: Counter[str] = Counter()
        self.rejected = 0
        self.rejects: list[tuple[int, str]] = []

    def reject(self, line: int, reason: str) -> None:
        """Count an invalid line; lines are numbered from 1."""
        self.rejected += 1
        if len(self.rejects) < NAMED_REJECTS:
            self.rejects.append((line, reason))

    @property
    def exit_code(self) -> int:
        """The exit code with --strict."""
        if not self.unsent.keys().isdisjoint(_NO_DAEMON):
            return NotRunningError.exit_code
        return AgentError.exit_code if self.unsent or self.rejected else 0
