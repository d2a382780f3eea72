"""Which destinations are configured beside DEFAULT, with their rules, and how that changes.

It knows the configuration. It must never know the daemon's files.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.cast import Account, token_of
from tests.support.daemon import Sections

_CHANGES = 3


@dataclass
class Destinations:
    """What is configured of `accounts`: by account the names of its destinations, at first one each.

    `ever` are all names that have been configured, by account.
    """

    accounts: Sequence[Account]
    tokens: Path
    now: dict[Account, tuple[str, ...]] = field(init=False)
    ever: dict[Account, set[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.now = {account: (account.name,) for account in self.accounts}
        self.ever = {account: {account.name} for account in self.accounts}
        self.tokens.mkdir()
        for account in self.accounts:
            path = self._token(account)
            path.touch(mode=0o600)
            path.write_text(token_of(account.name))

    @property
    def names(self) -> set[str]:
        """Return the names of all that are configured."""
        return {name for names in self.now.values() for name in names}

    def change(self, chance: random.Random) -> str:
        """Remove some, bring some back, rename some; return what, in words."""
        said = []
        for account in chance.sample(self.accounts, min(chance.randint(1, _CHANGES), len(self.accounts))):
            choices = [(), *((name,) for name in account.names)]
            before, self.now[account] = (
                self.now[account],
                chance.choice([each for each in choices if each != self.now[account]]),
            )
            self.ever[account].update(self.now[account])
            said.append(f"{' '.join(before) or account.name} → {' '.join(self.now[account]) or 'gone'}")
        return ", ".join(said)

    def bring_all_back(self) -> None:
        """Have everything configured that has ever been: the ledger of each can then be seen."""
        self.now = {account: tuple(sorted(names)) for account, names in self.ever.items()}

    def sections(self, url: str) -> Sections:
        """Return the tables of the destinations."""
        return {
            f"destinations.{name}": {"url": url, "slug": account.name, "token_file": str(self._token(account))}
            for account, names in self.now.items()
            for name in names
        }

    def rules(self, chance: random.Random) -> str:
        """Return the rules, in an order that does not matter."""
        rules = [rule for account in self.accounts for rule in self._rules_of(account)]
        return "".join(f"[[rules]]\n{rule}\n" for rule in chance.sample(rules, len(rules)))

    def _rules_of(self, account: Account) -> Iterator[str]:
        if account.uid is not None and os.geteuid() == 0:
            to = [f"destination = {json.dumps(name)}" for name in self.now[account][:1]]
            yield f"uid = {account.uid}\n{to[0] if to else 'deny = true'}\n"
            return
        limit = "" if account.limit is None else f"max_events_per_second = {account.limit}\n"
        for name in self.now[account]:
            yield f"asks_for = {json.dumps(name)}\ndestination = {json.dumps(name)}\n{limit}"

    def _token(self, account: Account) -> Path:
        return self.tokens / account.name
