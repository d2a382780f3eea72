"""How a configuration wants events taken and delivered: this agent's own, and those of the spools that it adopts."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from agent.config import Config, DestinationConfig
from agent.daemon.settings import Settings, account_of, queue_directory
from agent.delivery import policy
from agent.delivery.batching import BatchOptions
from agent.delivery.opening import DeliveryConfig, Source
from agent.delivery.transport import NoTransport, Transport
from agent.ingest.http_events import AccessPolicy, Policies
from agent.runtime import Runtime
from agent.spools import adoption
from agent.spools.adoption import MAX_OPEN, AdoptionPolicy
from agent.spools.identity import DESTINATION, Account


def access_policies(settings: Settings) -> Policies:
    """Return who may send events over HTTP, by destination."""
    tokens = settings.tokens if settings.config.front.enabled else {}
    return {
        name: AccessPolicy(settings.clients_tokens.get(name), each.api.team_id, each.api.slug, tokens.get(name))
        for name, each in settings.config.accounts.items()
    }


def delivery_config(settings: Settings, runtime: Runtime, destination: str) -> DeliveryConfig:
    """Return how a destination's own events are delivered. Raises ConfigError."""
    account = settings.config.accounts[destination]
    own = requests_of(settings.config, account).own
    return _delivery(settings, runtime, destination, concurrency=account.batch.concurrency, requests=own)


def adoption_policies(settings: Settings, runtime: Runtime) -> adoption.Policies:
    """Return which spools are adopted, and how they are delivered: one request at a time each.

    Where requests are limited, one spool at a time. Of several destinations with one account it is the first that has its token.
    """
    policies: dict[Account, AdoptionPolicy] = {}
    for name in sorted(settings.config.accounts, key=lambda name: name in settings.tokenless):
        requests = requests_of(settings.config, settings.config.accounts[name]).for_spools
        delivery = partial(_delivery, settings, runtime, name, concurrency=1, requests=requests)
        queue = queue_directory(settings.config, name) / DESTINATION
        policy = AdoptionPolicy(name, delivery, MAX_OPEN if requests is None else 1, queue)
        policies.setdefault(account_of(settings, name), policy)
    return policies


class Requests(NamedTuple):
    """How many requests a minute are for this agent's own events, and how many for those of spools; None for any number."""

    own: int | None
    for_spools: int | None


def requests_of(config: Config, account: DestinationConfig) -> Requests:
    """Share the requests a minute of a destination out: a fifth is for spools, if there may be any."""
    limit = account.api.max_requests_per_minute
    if limit is None or config.queue.adopt is None:
        return Requests(limit, limit)
    share = max(1, limit // 5)
    return Requests(max(1, limit - share), share)


def _delivery(
    settings: Settings, runtime: Runtime, destination: str, *, concurrency: int, requests: int | None
) -> DeliveryConfig:
    account = settings.config.accounts[destination]
    batch, retry, pause = account.batch, account.retry, account.pause
    return DeliveryConfig(
        connect=_connect(settings, runtime, destination),
        settings=policy.DeliverySettings(
            max_events=batch.max_events,
            max_bytes=batch.max_bytes,
            concurrency=concurrency,
            initial_delay=retry.initial_delay,
            max_delay=retry.max_delay,
            probe_interval=pause.probe_interval,
            max_probe_interval=pause.max_probe_interval,
            rejections_in_a_row=pause.rejections_in_a_row,
            requests_per_minute=requests,
        ),
        options=BatchOptions(
            max_delay=batch.max_delay,
            max_age=settings.config.queue.max_age,
            split_sessions=batch.split_sessions,
        ),
    )


def _connect(settings: Settings, runtime: Runtime, destination: str) -> Callable[[Source], Transport]:
    """Return what makes the transport of a queue of a destination. Raises ConfigError."""
    forward = settings.config.accounts[destination].forward
    if forward.servers:
        from agent.daemon.forwarding import forwarding

        return forwarding(forward)
    transport = _to_api(settings, runtime, destination)
    return lambda _: transport


def _to_api(settings: Settings, runtime: Runtime, destination: str) -> Transport:
    if (reason := settings.tokenless.get(destination)) is not None:
        return NoTransport(reason)
    # Here: a daemon that forwards everything does not pay for the import.
    from agent.delivery.http_transport import Endpoint, HttpTransport

    api, token = settings.config.accounts[destination].api, settings.tokens[destination]
    secret = token.reveal() if token is not None else None
    endpoint = Endpoint(url=api.url, token=secret, team_id=api.team_id, slug=api.slug, timeout=api.timeout)
    return HttpTransport(endpoint, wall_clock=runtime.wall_clock)
