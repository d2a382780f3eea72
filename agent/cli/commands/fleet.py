"""`fleet`: set up the engine that carries a fleet, and see where every event of a team is."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from agent.cli.filters import yes_option
from agent.cli.options import config_option, find_config, json_option
from agent.cli.prompts import confirmed
from agent.cli.views.output import complain, say, say_json, show
from agent.cli.views.words import PROGRAM, amount
from agent.errors import AgentError, ConfigError

if TYPE_CHECKING:
    from agent.config import RelayConfig
    from agent.fleet.engine import Message
    from agent.fleet.nats_engine import NatsEngine
    from agent.fleet.nats_setup import Found

T = TypeVar("T")

DIFFERS = 1
DECLINED = 1
UNREACHABLE = 4


_AS_RELAY = "this takes credentials of relays of the team: see `fleet permissions`"
_AS_ADMIN = "this takes credentials that may do anything in the account, as those of `fleet init`"


class EngineUnreachableError(AgentError):
    """The engine cannot be asked, or does not permit it."""

    exit_code = UNREACHABLE


@click.group(short_help="Set up and inspect a fleet: init, status, resume, permissions, dead-letters.")
def fleet() -> None:
    """Set up the NATS JetStream that agents forward to and relays deliver from, and see where every event is.

    What to connect to, and for which team, is said by [relay] in the configuration.
    """


@fleet.command(short_help="Create what is missing in the engine, and say what differs.")
@click.option(
    "--update", is_flag=True, help="Change sizes, replicas and what goes when a stream is full to what is wanted."
)
@click.option("--dry-run", is_flag=True, help="Change and create nothing, only say what there is.")
@config_option
@json_option
def init(path: Path | None, as_json: bool, dry_run: bool, update: bool) -> int:
    """Create the streams, the consumer and the buckets of a fleet where they are missing; what is there is compared.

    What differs is named, with both values, and left as it is; --update changes sizes, replicas and what goes when a stream
    is full, and removes no event by that.
    Exit code 1: something differs still, or is missing with --dry-run. The credentials in [relay] have to be ones that may do
    anything in the account: give it a configuration of its own.
    """
    relay = _relay(path)
    from agent.fleet.nats_setup import set_up

    def ask(engine: "NatsEngine") -> Awaitable[list["Found"]]:
        return set_up(engine, [relay.team or ""], relay, create=not dry_run, update=update and not dry_run)

    found = _ask(relay, ask, _AS_ADMIN)
    if as_json:
        say_json({"found": [each.to_json() for each in found]})
    else:
        from agent.cli.views.fleet import found_lines

        say(*(line for each in found for line in found_lines(each, would_update=update and dry_run)))
    return DIFFERS if any(each.differences or each.state == "missing" for each in found) else 0


@fleet.command(short_help="Say where every event of the team is.")
@config_option
@json_option
def status(path: Path | None, as_json: bool) -> int:
    """Say where every event of the team is: delivered, dead-lettered, expired, in the stream, or lost in the engine.

    It reads the team's ledger and what the stream holds. With --json: {"teams": {TEAM: {…}}}.
    """
    import time

    relay = _relay(path)
    from agent.fleet.inspection import team_status

    team = relay.team or ""
    found = _ask(relay, lambda engine: team_status(engine, team))
    if as_json:
        say_json({"teams": {team: found.to_json()}})
        return 0
    from agent.cli.views.fleet import fleet_screen

    show(fleet_screen(team, found, time.time()))
    return 0


@fleet.command(short_help="Have the relays of a paused team try at once.")
@config_option
def resume(path: Path | None) -> int:
    """Have the pause of the team probed at once, and not at the time that `fleet status` says.

    A relay that holds an event tries, within seconds; if the API accepts it, all relays go on. This takes the credentials of
    relays. A relay that the API refuses alone is not concerned: replace its token, or send it SIGHUP.
    """
    from agent.fleet.inspection import probe_now

    relay = _relay(path)
    team = relay.team or ""
    if _ask(relay, lambda engine: probe_now(engine, team)) is None:
        say(f"The team {team} is not paused.")
    else:
        say(f"A relay of the team {team} probes within seconds. To see how it goes: {PROGRAM} fleet status")
    return 0


@fleet.command(short_help="Print what the credentials of a pool or of relays have to allow.")
@click.option("--pool", metavar="NAME", help="Of runners of this pool.  [default: of relays]")
@config_option
def permissions(path: Path | None, pool: str | None) -> int:
    """Print the subjects that a credential has to allow, as JSON, in the form that nats-server's own configuration takes.

    \b
    artifacts-agent fleet permissions --pool linux

    A credential that allows more lets whoever steals it do more. That of a pool has to be of an account of its own, which
    imports this subject from the fleet's account as a service, and nothing else.
    """
    from agent.fleet.names import check_token
    from agent.fleet.permissions import of_pool, of_relays

    team = _relay(path).team or ""
    try:
        found = of_relays(team) if pool is None else of_pool(team, check_token(pool))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--pool") from None
    allowed = {"publish": {"allow": list(found.publish)}, "subscribe": {"allow": list(found.subscribe)}}
    say_json({"permissions": allowed})
    return 0


@fleet.group("dead-letters", short_help="Inspect the events of the team that the API refused: ls, export, purge.")
def dead_letters() -> None:
    """Inspect the events that the API refused of all runners of the team.

    To try them again: mend what was wrong, `fleet dead-letters export`, hand them to an agent with `emit --strict -`, and
    purge them if its exit code is 0.
    """


@dead_letters.command(short_help="List dead letters, and why the API refused them.")
@config_option
@json_option
def ls(path: Path | None, as_json: bool) -> int:
    """List dead letters, the oldest first.

    With --json, one object a line: number, subject, queue, seq, rejected_at, status, message, context, event. The number is what
    `purge --up-to` takes; seq is the event's in its queue. A message that no agent wrote has neither seq nor event.
    """
    found = _dead(_relay(path))
    if as_json:
        for each in found:
            say_json(each)
    else:
        from agent.cli.views.fleet import dead_letter_table

        show(dead_letter_table(found))
    return 0


@dead_letters.command(short_help="Print the events of dead letters as lines that `emit --strict -` takes.")
@config_option
def export(path: Path | None) -> int:
    """Print the events themselves, one a line, and a context line where the context changes.

    Standard error says up to which number they go: that is what `purge --up-to` takes, so that nothing is removed that has come
    since. Messages that no agent wrote have no event, and are left out.
    """
    found = _dead(_relay(path))
    context: object = None
    for each in found:
        if each["event"] is None:
            continue
        if each["context"] != context:
            context = each["context"]
            say_json({"context": context})
        say_json(each["event"])
    if left := sum(each["event"] is None for each in found):
        complain(f"{amount(left, 'dead letter')} without an event left out")
    if found:
        last = found[-1]["number"]
        complain(f"these are all up to number {last}: `{PROGRAM} fleet dead-letters purge --up-to {last}` removes them")
    return 0


@dead_letters.command(short_help="Remove dead letters of the team.")
@click.option(
    "--up-to", metavar="NUMBER", type=click.IntRange(min=1), help="Keep those with higher numbers.  [default: none]"
)
@yes_option
@config_option
def purge(path: Path | None, yes: bool, up_to: int | None) -> int:
    """Remove dead letters: all, or those up to the number that `export` and `ls` say. They stay counted as dead-lettered.

    This takes the credentials of `fleet init`, and not those of relays: NATS lets who may purge a stream purge it for all teams.
    Exit code 1: the answer was no.
    """
    relay = _relay(path)
    which = "all dead letters" if up_to is None else f"the dead letters up to number {up_to}"
    if not yes and not confirmed(f"Remove {which} of the team {relay.team}?"):
        return DECLINED
    from agent.fleet.inspection import purge_dead

    say(
        f"{amount(_ask(relay, lambda engine: purge_dead(engine, relay.team or '', up_to), _AS_ADMIN), 'dead letter')} removed"
    )
    return 0


def _dead(relay: "RelayConfig") -> list[dict[str, object]]:
    from agent.fleet.inspection import dead_messages, described

    def read(engine: "NatsEngine") -> Awaitable[list["Message"]]:
        return dead_messages(engine, relay.team or "")

    return [described(each) for each in _ask(relay, read)]


def _relay(path: Path | None) -> "RelayConfig":
    """Return what the configuration says of the engine. Raises ConfigError."""
    import os

    from agent import config
    from agent.fleet.installed import require_client

    require_client("relay.servers")
    relay = config.load(find_config(path), os.environ, directories=config.Directories.of_system()).relay
    if not relay.servers:
        raise ConfigError(
            "relay.servers: is missing: it says which NATS carries the fleet, such as nats://nats.internal:4222"
        )
    return relay


def _ask(relay: "RelayConfig", question: Callable[["NatsEngine"], Awaitable[T]], denied: str = _AS_RELAY) -> T:
    """Return the engine's answer; `denied` says what to do if it is not permitted. Raises EngineUnreachableError."""
    import anyio

    from agent.fleet.engine import EngineError, NotPermittedError
    from agent.fleet.nats_engine import engine_for_relays

    async def run() -> T:
        engine = engine_for_relays(relay.servers or (), relay.credentials, relay.team or "")
        try:
            return await question(engine)
        finally:
            await engine.aclose()

    try:
        return anyio.run(run)
    except EngineError as error:
        if isinstance(error, NotPermittedError):
            raise EngineUnreachableError(f"{error}: {denied}") from None
        raise EngineUnreachableError(f"the engine cannot be asked: {error}") from None
