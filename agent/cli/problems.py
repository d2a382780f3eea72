"""What is wrong, said on standard error: each problem on one line."""

import os

from agent.cli.views.output import complain
from agent.errors import AgentError


def report(error: AgentError | ExceptionGroup) -> int:
    """Say what is wrong, and return the exit code; an error that is not the agent's own is a bug, and goes on up."""
    from agent.daemon import journal

    problems = list(_leaves(error))
    ours = [problem for problem in problems if isinstance(problem, AgentError)]
    lines = dict.fromkeys(line for problem in ours for line in str(problem).split("\n"))
    complain(*lines, before=journal.priority("error") if journal.is_journal(os.environ) else "")
    if len(ours) < len(problems):
        raise error
    return ours[0].exit_code


def _leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
