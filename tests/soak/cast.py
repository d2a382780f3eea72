"""Who sends in the soak, where to, and how the API treats each account: the same for clients, server, daemon and oracle.

Pure. It must never know what became of an event.
"""

import re
from typing import Literal, NamedTuple

DEFAULT = "default"
USER = 34567
LARGE = 4000

Treatment = Literal["mixed", "blocked", "down", "flaky", "well"]


class Account(NamedTuple):
    """An account of the API, by its slug, and what its only client does: rates are in events a second, sizes in bytes.

    Blocked and down it is up to the end. Its destination may be renamed, see `names`. With a `uid` a rule chooses it by that
    user, else the client asks for it; its rule may have a `limit` of events a second. With `own_disk` it has a small one.
    """

    name: str
    treatment: Treatment
    window: int = 16
    rate: float = 40
    padding: int = 0
    uid: int | None = None
    limit: int | None = None
    own_disk: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """Return what its destination may be called."""
        return self.name, f"{self.name}-renamed"

    @property
    def reasons(self) -> frozenset[str]:
        """Return for which reasons its events may be dropped, besides those that faults explain."""
        full = {"overflow", "quota"} if self.treatment in {"blocked", "down"} else set[str]()
        if self.own_disk:
            full.add("disk_full")
        return frozenset(full | ({"rate_limited"} if self.limit is not None else set()))


ACCOUNTS = (
    Account("blocked-1", "blocked", rate=10),
    Account("full-1", "down", rate=150, padding=LARGE, own_disk=True),
    Account("flaky-1", "flaky"),
    Account("well-1", "well"),
    Account("limited", "well", rate=120, limit=60),
    Account("blocked-2", "blocked", window=1, rate=10),
    Account("full-2", "down", rate=250, padding=LARGE),
    Account("flaky-2", "flaky", window=1, rate=20),
    Account("by-user", "well", uid=USER),
    Account("well-2", "well", window=40, rate=80),
)


class Sending(NamedTuple):
    """A client of the soak; rates are in events a second. Those without an account send to DEFAULT."""

    kind: str
    window: int
    rate: float
    account: Account | None = None


CLIENTS = (
    Sending("durable", 1, 60),
    Sending("durable", 16, 250),
    Sending("durable", 40, 250),
    Sending("durable", 100, 250),
    Sending("careless", 10, 60),
    *(Sending("durable", each.window, each.rate, each) for each in ACCOUNTS),
)
"""All of them, by number; with N destinations besides DEFAULT those that send to these and to DEFAULT."""


def clients_of(destinations: int) -> tuple[Sending, ...]:
    """Return the clients of a soak with so many destinations besides DEFAULT."""
    return CLIENTS[: len(CLIENTS) - len(ACCOUNTS) + destinations]


def account_of(client: int) -> str:
    """Return where the events of a client have to arrive."""
    account = CLIENTS[client].account
    return DEFAULT if account is None else account.name


def session_of(client: int) -> str:
    """Return the session of a client's events."""
    account = CLIENTS[client].account
    return f"soak-{client}" + ("-" + "x" * account.padding if account is not None and account.padding else "")


def client_of(session: str) -> int | None:
    """Return whose session it is; None if it is no client's."""
    found = re.fullmatch(r"soak-([0-9]+)(-x+)?", session)
    client = int(found[1]) if found is not None else len(CLIENTS)
    return client if client < len(CLIENTS) and session_of(client) == session else None


def token_of(account: str) -> str:
    """Return the token of an account other than DEFAULT."""
    return f"token-of-{account}"
