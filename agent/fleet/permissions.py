"""What a credential may do: a pool's publishes to its own subject and nothing else; a team's relays do what relays do.

A server does not check where it is asked to answer to, so that a pool's credentials have to be of an account of their own, which
imports the pool's subject from the fleet's as a service: in the fleet's own, an answer could be sent as a request.
"""

from typing import NamedTuple

from agent.fleet import names


class Permissions(NamedTuple):
    """The subjects that a credential may publish and subscribe to, as nsc and the server's configuration want them."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox_of_pool(team: str, pool: str) -> str:
    """Return where the runners of a pool are answered: nobody else may listen there."""
    return f"_INBOX_aa.{team}.{pool}"


def inbox_of_relays(team: str) -> str:
    """Return where the relays of a team are answered, and are given events."""
    return f"_INBOX_aa_relay.{team}"


def of_pool(team: str, pool: str) -> Permissions:
    """Return what a runner may do, in the account of its pool."""
    return Permissions((names.events_subject(team, pool),), (f"{inbox_of_pool(team, pool)}.>",))


def of_relays(team: str) -> Permissions:
    """Return what a relay may do, and who runs `fleet status`."""
    consumer, keys = names.consumer(team), f"KV_{names.STATE}"
    publish = (
        names.ledger_subject(team),
        names.dead_subject(team),
        f"$JS.API.CONSUMER.MSG.NEXT.{names.EVENTS}.{consumer}",
        f"$JS.API.CONSUMER.INFO.{names.EVENTS}.{consumer}",
        f"$JS.ACK.{names.EVENTS}.{consumer}.>",
        *(f"$JS.API.STREAM.INFO.{stream}" for stream in (names.EVENTS, names.LEDGER, names.DEAD, keys)),
        *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in (names.LEDGER, names.DEAD, keys)),
        *(f"$JS.API.DIRECT.GET.{stream}" for stream in (names.EVENTS, names.DEAD)),
        f"$JS.API.CONSUMER.CREATE.{names.LEDGER}.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{names.LEDGER}.>",
        f"$JS.API.CONSUMER.DELETE.{names.LEDGER}.>",
        *(f"$KV.{names.STATE}.{key(team)}" for key in (names.pause_key, names.rate_key, names.probe_key)),
        f"$O.{names.SNAPSHOTS}.>",
        *(f"$JS.API.{call}.OBJ_{names.SNAPSHOTS}" for call in ("STREAM.INFO", "STREAM.PURGE", "STREAM.MSG.GET")),
        f"$JS.API.DIRECT.GET.OBJ_{names.SNAPSHOTS}.>",
        f"$JS.API.CONSUMER.CREATE.OBJ_{names.SNAPSHOTS}",
        f"$JS.API.CONSUMER.DELETE.OBJ_{names.SNAPSHOTS}.>",
        "$JS.API.STREAM.NAMES",  # nats-py asks for the stream of each object it loads
        "$JS.FC.>",
    )
    return Permissions(publish, (f"{inbox_of_relays(team)}.>",))
