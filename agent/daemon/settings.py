"""What a daemon goes by: a configuration with its tokens, and what it says of queues and accounts.

Quick to import: commands need it without a daemon.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from agent.config import Config, ForwardConfig, TokenFiles, read_http_tokens, read_token, token_files, token_variable
from agent.errors import ConfigError
from agent.queue import segment
from agent.queue.store import Limits
from agent.rules import DEFAULT
from agent.secret import Secret
from agent.spools.identity import DESTINATIONS, Account


@dataclass(frozen=True)
class Settings:
    """A configuration and what stands outside of it: tokens, and how their files look.

    `tokens` are those for the API, by destination; where one other than DEFAULT has none, `tokenless` says why. Where events are
    forwarded none is needed, and none is read. `clients_tokens` are what clients send over TCP, by the destination that it is
    for. `refused_tokens` says what is wrong with a destination's tokens, of which the last usable one stays.
    """

    config: Config
    tokens: Mapping[str, Secret | None]
    tokenless: Mapping[str, str]
    clients_tokens: Mapping[str, Secret]
    token_files: TokenFiles
    refused_tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Config, environ: Mapping[str, str], before: "Settings | None" = None) -> Self:
        """Read the tokens of a configuration. Raises ConfigError, but not for what is one further destination's trouble.

        A token that is not usable stays as it was `before`, unless that would take it to another account.
        """
        files = token_files(config, environ)  # first: a token that is replaced meanwhile is read again later
        tokens: dict[str, Secret | None] = dict.fromkeys(config.accounts)
        tokenless: dict[str, str] = {}
        refused: dict[str, str] = {}
        for name, each in config.accounts.items():
            if each.forward.servers:
                continue
            try:
                tokens[name] = read_token(config, environ, name)
            except ConfigError as error:
                if last := _last_token(before, config, name):
                    tokens[name], refused[name] = last, str(error)
                elif name == DEFAULT:
                    raise
                else:
                    tokenless[name] = str(error)
            else:
                if tokens[name] is None and name != DEFAULT:
                    tokenless[name] = f"no token: set destinations.{name}.token_file, or {token_variable(name)}"
        clients = read_http_tokens(config, environ, before.clients_tokens if before is not None else None)
        for name, problem in clients.problems.items():
            known = refused.setdefault(name, problem)
            if known != problem:  # else the API's token is that of clients
                refused[name] = f"{known}; {problem}"
        return cls(config, tokens, tokenless, clients.tokens, files, refused)


def _last_token(before: Settings | None, config: Config, destination: str) -> Secret | None:
    """Return the token that a destination has had for the account that it still has."""
    if before is None or destination not in before.config.accounts:
        return None
    is_same = named_account(before.config, destination) == named_account(config, destination)
    return before.tokens[destination] if is_same else None


def queue_directory(config: Config, destination: str = DEFAULT) -> Path:
    """Return the directory of a destination's queue: one inside of DEFAULT's, and of the same shape."""
    return config.queue.directory if destination == DEFAULT else destinations_directory(config) / destination


def destinations_directory(config: Config) -> Path:
    """Return where the directories of all destinations but DEFAULT are."""
    return config.queue.directory / DESTINATIONS


def limits_of(config: Config) -> Limits:
    """Return what bounds each queue of a configuration."""
    queue = config.queue
    part = queue.max_bytes if queue.total_bytes is None else queue.total_bytes // len(config.accounts)
    return Limits(
        # Space is freed by whole segments; and a segment's length must tell it from a file that is no segment.
        segment_bytes=min(queue.segment_bytes, queue.max_bytes // 4, part // 4, segment.MAX_BYTES // 2),
        max_bytes=queue.max_bytes,
        max_age=queue.max_age,
        overflow=queue.overflow,
        min_free_bytes=queue.min_free_bytes,
        sync=queue.sync,
        history_bytes=config.history.max_bytes,
        history_age=config.history.max_age,
    )


def engine_url(forward: ForwardConfig) -> str:
    """Return what stands for the URL of an account whose events are forwarded."""
    first = (forward.servers or [""])[0]
    return f"{first}/{forward.team}/{forward.pool}"


def named_account(config: Config, destination: str = DEFAULT) -> Account:
    """Return where the events of a destination go, as far as the configuration says it: without a team its token counts, too."""
    account = config.accounts[destination]
    forward, api = account.forward, account.api
    if forward.servers:  # the first names the engine: others may be added
        return Account(engine_url(forward))
    return Account(api.url, api.team_id, api.slug)


def account_of(settings: Settings, destination: str = DEFAULT) -> Account:
    """Return where the events of a destination go."""
    return named_account(settings.config, destination).with_token(settings.tokens[destination])


def refuse_to_swap(settings: Settings, destination: str, before: Account, queued: int) -> None:
    """Raise ConfigError if what waits in a destination's queue is for the account that another one has now."""
    now = account_of(settings, destination)
    if not queued or before == now:
        return
    for other in settings.config.accounts:
        if other != destination and account_of(settings, other) == before:
            raise ConfigError(
                f"destination {destination}: its queue holds {queued} events for {before}, the account of {other} now: "
                f"let {destination} keep that account until its queue is empty (`artifacts-agent flush`), "
                "or purge the queue first"
            )
