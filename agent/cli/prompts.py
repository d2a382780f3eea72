"""Asking a person before something is gone for good."""

import sys

import click


def confirmed(question: str) -> bool:
    """Tell whether to go on. Raises UsageError where nobody can be asked."""
    require_somebody()
    return click.confirm(question, default=False, err=True)


def require_somebody() -> None:
    """Raise UsageError where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("there is no terminal on which to ask for confirmation: add --yes.")
