"""`emit`: one event from options, or many from standard input, to the daemon's stream socket.

It never waits long, and never fails unless asked to, whatever values a build computes. It reads no
configuration, so that it starts quickly.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import click

from agent.cli.views.emit import EmitReport
from agent.cli.views.output import complain
from agent.errors import AgentError

_REASONS = {
    "absent": "no daemon listens on {path}: start it with `artifacts-agent run`, or name its socket with --socket",
    "denied": "{path}: Permission denied: this user needs its group (listen.group, listen.mode), and a way to its directory",
    "disabled": "sending is turned off by an empty ARTIFACTS_AGENT_SOCKET",
    "full": "{path}: the daemon does not read: it is overloaded or stopped",
    "invalid": "a value is invalid",
    "too_large": "the event is too large: a line may have at most 64 KiB",
    "failed": "{path}: the socket cannot be used: is the path right?",
}


class _Computed(click.Option):
    """An option whose value a build computes: one that is not valid arrives as the error, for the command to say."""

    def process_value(self, ctx: click.Context, value: object) -> object:
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            return error


class _Hash(click.ParamType[str]):
    name = "hash"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value or not _is_text(value):
            self.fail(f"{value!r} is not the hash of an artifact.", param, ctx)
        return value


def _is_text(value: str) -> bool:
    """Tell whether an argument is text: bytes of another encoding arrive as lone surrogates, which JSON does not have."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Milliseconds(click.ParamType[float]):
    """A number that JSON and the daemon know; one without a fraction is an integer, as the API has it."""

    name = "milliseconds"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not 0 <= number < 2**63:
            self.fail(f"{value!r} is not a number of milliseconds, 0 or more.", param, ctx)
        return int(number) if number.is_integer() else number


@click.command()
@click.argument("source_of_lines", metavar="[-]", required=False, type=click.Choice(["-"]))
@click.option(
    "--event", cls=_Computed, type=click.Choice(["HIT", "MISS"]), help="Whether the artifact was in the cache."
)
@click.option("--source", cls=_Computed, type=click.Choice(["LOCAL", "REMOTE"]), help="Which cache was asked.")
@click.option("--hash", cls=_Computed, type=_Hash(), metavar="HASH", help="The artifact's hash.")
@click.option(
    "--duration",
    cls=_Computed,
    type=_Milliseconds(),
    metavar="MS",
    help="The milliseconds that a hit saved; 0 on a miss.",
)
@click.option(
    "--session-id",
    metavar="UUID",
    help="The run of the build that the event belongs to.  [default, also if empty: a new UUID]",
)
@click.option(
    "--destination",
    metavar="NAME",
    help="The daemon's destination that it is for, if its rules let this user choose.  [default: as its rules say]",
)
@click.option(
    "--socket",
    "path",
    # Not for click to check: whether it may be used, sending finds out, and says it without failing a build.
    type=click.Path(readable=False),
    help="The daemon's stream socket.  [default: ARTIFACTS_AGENT_SOCKET, else "
    "$XDG_RUNTIME_DIR/artifacts-agent/events.sock if it exists, else /run/artifacts-agent/events.sock]",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if an event was not sent: 2 for an invalid value, 4 without a daemon, else 1. With '-', wait for a slow daemon.",
)
def emit(source_of_lines: str | None, path: str | None, destination: str | None, strict: bool, **values: object) -> int:
    """Send one usage event, or the lines of standard input.

    \b
    artifacts-agent emit --event HIT --source LOCAL --hash 115c7929ab9c479c --duration 514
    tool --events | artifacts-agent emit -

    --duration is the time in milliseconds that a hit saved: how long it took to build the artifact. On a miss it is 0.

    With "-", each line of standard input is an event object, an array of them, or a context line, as on the stream socket. An
    invalid line is skipped, and reported with its number.

    The events are handed to the daemon; `emit` does not wait until they are on disk. What could not be sent is reported on
    standard error, but the exit code is 0, because telemetry must not fail a build. To fail all the same: --strict.

    The configuration file is not read. If the socket is not in its default place, name it by --socket or
    ARTIFACTS_AGENT_SOCKET.
    """
    fields: dict[str, Any] = {**values, "session_id": values["session_id"] or None}
    report = EmitReport()
    if source_of_lines is not None:
        if given := [name for name, value in fields.items() if value is not None]:
            raise click.UsageError(f"'-' reads events from standard input: leave out {_options(given)}.")
        _send_lines(report, path, destination, strict=strict)
    else:
        if missing := [name for name in ("event", "source", "hash") if fields[name] is None]:
            raise click.UsageError(f"Missing {_options(missing)}; or write '-' to read events from standard input.")
        if invalid := {name: value for name, value in fields.items() if isinstance(value, click.BadParameter)}:
            return _refuse(invalid, strict=strict)
        _send_one(report, path, destination, fields)
    if strict or set(report.unsent) != {"disabled"}:
        _say(report, path)
    return report.exit_code if strict else 0


def _options(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _send_lines(report: EmitReport, path: str | None, destination: str | None, *, strict: bool) -> None:
    """Send the lines of standard input. Raises AgentError if it cannot be read and that is to fail the build."""
    from agent.cli.emit_lines import send_standard_input

    try:
        send_standard_input(report, path, destination, strict=strict)
    except AgentError as error:
        if strict:
            raise
        complain(str(error))


def _refuse(invalid: Mapping[str, click.BadParameter], *, strict: bool) -> int:
    if strict:
        raise next(iter(invalid.values()))
    reasons = "; ".join(f"{_options([name])}: {error.message.rstrip('.')}" for name, error in invalid.items())
    complain(f"1 event was not sent: {reasons}")
    return 0


def _send_one(report: EmitReport, path: str | None, destination: str | None, fields: Mapping[str, Any]) -> None:
    """Send the event that the options describe, without waiting."""
    from agent.client import EventClient

    with EventClient(path, destination=destination) as client:
        if not client.emit(**fields):
            report.unsent.update(client.unsent_by_reason)


def _say(report: EmitReport, path: str | None) -> None:
    from agent.client import find_socket

    for line, reason in report.rejects:
        complain(f"line {line}: {reason}")
    if more := report.rejected - len(report.rejects):
        complain(f"and {more:,} more invalid {'line' if more == 1 else 'lines'}")
    where = find_socket(os.environ) if path is None else path
    for reason, count in report.unsent.items():
        noun = "1 event was" if count == 1 else f"{count:,} events were"
        complain(f"{noun} not sent: {_REASONS[reason].format(path=where)}")
