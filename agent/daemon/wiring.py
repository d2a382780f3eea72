"""How a configuration wants events taken and delivered: this agent's own, and those of the spools that it adopts."""

from functools import partial
from typing import NamedTuple

from agent.config import Config
from agent.daemon.settings import Settings, account_of
from agent.delivery import policy
from agent.delivery.batching import BatchOptions
from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.pipeline import DeliveryConfig
from agent.ingest.http_events import AccessPolicy
from agent.runtime import Runtime
from agent.spools.adoption import MAX_OPEN, AdoptionPolicy


def access_policy(settings: Settings) -> AccessPolicy:
    """Return who may send events over HTTP."""
    api = settings.config.api
    api_token = settings.token if settings.config.front.enabled else None
    return AccessPolicy(settings.clients_token, api.team_id, api.slug, api_token)


def delivery_config(settings: Settings, runtime: Runtime) -> DeliveryConfig:
    """Return how this agent's own events are delivered. Raises ConfigError."""
    own = requests_of(settings.config).own
    return _delivery(settings, runtime, concurrency=settings.config.batch.concurrency, requests=own)


def adoption_policy(settings: Settings, runtime: Runtime) -> AdoptionPolicy:
    """Return which spools are adopted, and how they are delivered: one request at a time each.

    Where requests are limited, one spool at a time.
    """
    requests = requests_of(settings.config).for_spools
    delivery = partial(_delivery, settings, runtime, concurrency=1, requests=requests)
    return AdoptionPolicy(account_of(settings.config), delivery, MAX_OPEN if requests is None else 1)


class Requests(NamedTuple):
    """How many requests a minute are for this agent's own events, and how many for those of spools; None for any number."""

    own: int | None
    for_spools: int | None


def requests_of(config: Config) -> Requests:
    """Share api.max_requests_per_minute out: a fifth is for spools, if there may be any."""
    limit = config.api.max_requests_per_minute
    if limit is None or config.queue.adopt is None:
        return Requests(limit, limit)
    share = max(1, limit // 5)
    return Requests(max(1, limit - share), share)


def _delivery(settings: Settings, runtime: Runtime, *, concurrency: int, requests: int | None) -> DeliveryConfig:
    config, token = settings.config, settings.token
    api, batch = config.api, config.batch
    endpoint = Endpoint(
        url=api.url,
        token=token.reveal() if token is not None else None,
        team_id=api.team_id,
        slug=api.slug,
        timeout=api.timeout,
    )
    return DeliveryConfig(
        transport=HttpTransport(endpoint, wall_clock=runtime.wall_clock),
        settings=policy.DeliverySettings(
            max_events=batch.max_events,
            max_bytes=batch.max_bytes,
            concurrency=concurrency,
            initial_delay=config.retry.initial_delay,
            max_delay=config.retry.max_delay,
            probe_interval=config.pause.probe_interval,
            max_probe_interval=config.pause.max_probe_interval,
            rejections_in_a_row=config.pause.rejections_in_a_row,
            requests_per_minute=requests,
        ),
        options=BatchOptions(
            max_delay=batch.max_delay,
            max_age=config.queue.max_age,
            split_sessions=batch.split_sessions,
        ),
    )
