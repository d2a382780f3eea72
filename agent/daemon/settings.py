"""What a daemon goes by: a configuration with its tokens, and what it says of the queue and the account.

Quick to import: commands need it without a daemon.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from agent.config import Config, TokenFiles, read_http_token, read_token, token_files
from agent.queue import segment
from agent.queue.store import Limits
from agent.secret import Secret
from agent.spools.identity import Account


@dataclass(frozen=True)
class Settings:
    """A configuration and what stands outside of it: the API's token, that of clients over TCP, and how their files look."""

    config: Config
    token: Secret | None
    clients_token: Secret | None
    token_files: TokenFiles

    @classmethod
    def read(cls, config: Config, environ: Mapping[str, str]) -> Self:
        """Read the tokens of a configuration. Raises ConfigError."""
        files = token_files(config, environ)  # first: a token that is replaced meanwhile is read again later
        return cls(config, read_token(config, environ), read_http_token(config, environ), files)


def limits_of(config: Config) -> Limits:
    """Return what bounds the queue of a configuration."""
    queue = config.queue
    return Limits(
        # Space is freed by whole segments; and a segment's length must tell it from a file that is no segment.
        segment_bytes=min(queue.segment_bytes, queue.max_bytes // 4, segment.MAX_BYTES // 2),
        max_bytes=queue.max_bytes,
        max_age=queue.max_age,
        overflow=queue.overflow,
        min_free_bytes=queue.min_free_bytes,
        sync=queue.sync,
        history_bytes=config.history.max_bytes,
        history_age=config.history.max_age,
    )


def account_of(config: Config) -> Account:
    """Return where the events of a configuration go."""
    return Account(config.api.url, config.api.team_id, config.api.slug)
