"""Noticing that files with tokens are replaced."""

from collections.abc import Mapping

import anyio

from agent.config import Config, TokenFiles, token_files

TOKEN_POLL_SECONDS = 5.0


class TokenWatch:
    """How the files with tokens look, as far as it is `known`."""

    def __init__(self, known: TokenFiles) -> None:
        self.known = known

    async def replaced(self, config: Config, environ: Mapping[str, str]) -> None:
        """Return when files that `config` names look other than is known; it is known then. One that is gone counts as before."""
        while True:
            await anyio.sleep(TOKEN_POLL_SECONDS)
            found = {**self.known, **token_files(config, environ)}
            if found != self.known:
                self.known = found
                return
