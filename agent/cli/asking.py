"""Asking a person before something is gone for good."""

import sys

import click


def confirmed(question: str, *, yes: bool) -> bool:
    """Tell whether to go on. Raises UsageError where nobody can be asked."""
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("this asks before it does anything, and there is no terminal to ask on: add --yes.")
    return click.confirm(question, default=False, err=True)
