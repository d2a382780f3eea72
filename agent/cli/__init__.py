"""The command line: arguments, output and exit codes. It must never know an algorithm."""

from agent.cli.main import main

__all__ = ["main"]
