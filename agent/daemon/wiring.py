"""How a configuration wants events delivered: this agent's own, and those of the spools that it adopts.

It knows the configuration and the parts that delivery is made of. It must never know queues or sockets.
"""

from functools import partial
from typing import NamedTuple

from pydantic import SecretStr

from agent.config import Config
from agent.daemon.settings import account_of
from agent.delivery import backlog, policy
from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.pipeline import DeliveryConfig
from agent.runtime import Runtime
from agent.spools.adoption import MAX_OPEN, AdoptionPolicy


def delivery_config(settings: Config, token: SecretStr | None, runtime: Runtime) -> DeliveryConfig:
    """Return how this agent's own events are delivered."""
    return _delivery(
        settings, token, runtime, concurrency=settings.batch.concurrency, requests=requests_of(settings).own
    )


def adoption_policy(settings: Config, token: SecretStr | None, runtime: Runtime) -> AdoptionPolicy:
    """Return which spools are adopted, and how they are delivered: one request at a time each.

    Where requests are limited, one spool at a time.
    """
    requests = requests_of(settings).for_spools
    delivery = partial(_delivery, settings, token, runtime, concurrency=1, requests=requests)
    return AdoptionPolicy(account_of(settings), delivery, MAX_OPEN if requests is None else 1)


class Requests(NamedTuple):
    """How many requests a minute are for this agent's own events, and how many for those of spools; None for any number."""

    own: int | None
    for_spools: int | None


def requests_of(settings: Config) -> Requests:
    """Share api.max_requests_per_minute out: a fifth is for spools, if there may be any."""
    limit = settings.api.max_requests_per_minute
    if limit is None or settings.queue.adopt is None:
        return Requests(limit, limit)
    share = max(1, limit // 5)
    return Requests(max(1, limit - share), share)


def _delivery(
    settings: Config, token: SecretStr | None, runtime: Runtime, *, concurrency: int, requests: int | None
) -> DeliveryConfig:
    api, batch = settings.api, settings.batch
    endpoint = Endpoint(
        url=api.url,
        token=token.get_secret_value() if token is not None else None,
        team_id=api.team_id,
        slug=api.slug,
        timeout=api.timeout,
    )
    return DeliveryConfig(
        transport=HttpTransport(endpoint, wall_clock=runtime.wall_clock),
        settings=policy.DeliverySettings(
            max_events=batch.max_events,
            concurrency=concurrency,
            initial_delay=settings.retry.initial_delay,
            max_delay=settings.retry.max_delay,
            probe_interval=settings.pause.probe_interval,
            max_probe_interval=settings.pause.max_probe_interval,
            rejections_in_a_row=settings.pause.rejections_in_a_row,
            requests_per_minute=requests,
        ),
        options=backlog.BatchOptions(
            max_bytes=batch.max_bytes,
            max_delay=batch.max_delay,
            max_age=settings.queue.max_age,
            split_sessions=batch.split_sessions,
        ),
    )
