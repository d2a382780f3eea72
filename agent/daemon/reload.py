"""Taking over a new configuration and new tokens while the daemon runs."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

import structlog

from agent import config
from agent.config import Config, KeysError
from agent.control.schema import Reloaded
from agent.daemon import logging
from agent.daemon.journal import is_journal
from agent.daemon.service import Service
from agent.daemon.settings import Settings
from agent.daemon.systemd import Notifier
from agent.daemon.token_watch import TokenWatch
from agent.delivery.pipeline import Pipeline
from agent.errors import ConfigError


class Reloader:
    """Has all services take new settings over, or none: then the old `settings` stay. `load` reads the configuration again."""

    def __init__(
        self,
        load: Callable[[], Config],
        environ: Mapping[str, str],
        settings: Settings,
        services: Sequence[Service],
        notifier: Notifier,
    ) -> None:
        self._load = load
        self._environ = environ
        self.settings = settings
        self._watch = TokenWatch(settings.token_files)
        self._services = services
        self._notifier = notifier
        self._log = structlog.get_logger("agent.daemon")

    def reload(self) -> Reloaded:
        """Read configuration and tokens again. Raises ConfigError, which is in the log already, if they are refused."""
        return self._reload(self._load)

    def reload_if_valid(self) -> None:
        """Read configuration and tokens again, for nobody who waits for an answer."""
        with contextlib.suppress(ConfigError):  # it is in the log
            self.reload()

    async def watch_tokens(self) -> None:
        """Take new tokens over when their files are replaced; the configuration, which may be half edited, is not read."""
        while True:
            await self._watch.replaced(self.settings.config, self._environ)
            with contextlib.suppress(ConfigError):  # it is in the log
                self._reload(lambda: self.settings.config)

    def _reload(self, load: Callable[[], Config]) -> Reloaded:
        self._notifier.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            done = self._take_over(load)
        except ConfigError as error:
            self._log.error("reload_refused", error=str(error))
            self._notifier.show("reload", f"reload refused: {error}")
            raise
        else:
            self._notifier.show("reload", None)
            return done
        finally:
            self._notifier.notify("READY=1")

    def _take_over(self, load: Callable[[], Config]) -> Reloaded:
        old, loaded = self.settings, load()
        new = Settings.read(_until_restart(old.config, loaded), self._environ, old)
        prepared = [service.reload(new) for service in self._services]
        self.settings, self._watch.known = new, new.token_files
        restart_needed = config.needs_restart(old.config, loaded)
        for key in restart_needed:
            self._log.warning("restart_needed", key=key)
        logging.configure(new.config.log.level, new.config.log.format, to_journal=is_journal(self._environ))
        both = new.tokens.keys() & old.tokens.keys()
        new_token = (
            any(new.tokens[name] != old.tokens[name] for name in both) or new.clients_tokens != old.clients_tokens
        )
        changed = [*config.differences(old.config, new.config), *(["token"] if new_token else [])]
        self._log.info("reloaded", changed=changed)
        warn_of_tokens(new, self._environ)
        for take_over in prepared:
            take_over()
        refused = [f"{name}: {reason}" for name, reason in new.refused_tokens.items()]
        self._notifier.show("tokens", f"token refused: {'; '.join(refused)}" if refused else None)
        return Reloaded(changed, restart_needed, refused)


def _until_restart(old: Config, new: Config) -> Config:
    """Return a new configuration with those values of the old one that only a restart changes.

    Raises ConfigError if they do not go with the others.
    """
    kept: dict[str, dict[str, object]] = {}
    for key in config.RESTART_KEYS:
        section, _, name = key.partition(".")
        kept.setdefault(section, {})[name] = attrgetter(key)(old)
    try:
        return replace(new, **{section: replace(getattr(new, section), **each) for section, each in kept.items()})
    except KeysError as error:
        raise ConfigError(f"{error} (what only a restart changes is as it was: restart the daemon)") from None


def resume_if_token_is_newer(pipelines: Mapping[str, Pipeline], settings: Settings) -> None:
    """End pauses if the token was replaced while no daemon ran. Of a credential systemd makes a new copy at each start."""
    for name in settings.config.accounts.keys() & pipelines.keys():
        pipeline = pipelines[name]
        since, token = pipeline.paused_since, settings.token_files.get(f"{name}.token")
        account = settings.config.accounts[name]
        is_a_file = account.api.token_file is not None or bool(account.forward.servers)
        if since is not None and token is not None and is_a_file and token.changed_at > since:
            pipeline.resume()


def warn_of_tokens(settings: Settings, environ: Mapping[str, str]) -> None:
    """Say in the log which tokens are not usable, and which files with tokens every user of the machine may read."""
    log = structlog.get_logger("agent.daemon")
    for name, error in settings.refused_tokens.items():
        log.error("token_refused", destination=name, error=error)
    for path in config.exposed_token_files(settings.config, environ):
        log.warning("token_file_exposed", path=str(path), hint="others can read it: chmod o-r")
