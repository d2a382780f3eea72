"""Puts the parts of a daemon together, as a configuration wants them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from agent.control.routes import Control
from agent.control.schema import Reloaded
from agent.control.scrape import ScrapeListener
from agent.daemon.destinations import Destinations
from agent.daemon.listening import connection_limits, open_sockets
from agent.daemon.service import Service
from agent.daemon.services import (
    AdoptionService,
    ControlService,
    FrontService,
    HttpService,
    IntakeService,
    ListenerService,
    MetricsService,
    StreamService,
)
from agent.daemon.settings import Settings, limits_of
from agent.daemon.wiring import access_policies, adoption_policies
from agent.ingest import sockets
from agent.ingest.datagram import DatagramListener
from agent.ingest.http_events import HttpListener
from agent.ingest.intake import Intake
from agent.ingest.stream import StreamListener
from agent.queue.filesystem import Filesystem
from agent.runtime import Runtime, Threads
from agent.spools.adoption import Adoption

HTTP_ROLES = ("http", "http_tcp")
METRICS_ROLES = ("metrics", "metrics_tcp")


@dataclass(frozen=True)
class Parts:
    """What a daemon consists of. It is drained in this order: `listeners`, `deliveries`; the `others` go on to the end."""

    destinations: Destinations
    listeners: Sequence[Service]
    deliveries: Sequence[Service]
    others: Sequence[Service]

    @property
    def services(self) -> list[Service]:
        """All services, in the order in which they are started and take new settings over."""
        return [*self.others, *self.deliveries, *self.listeners]


def assemble(
    settings: Settings,
    environ: Mapping[str, str],
    fs: Filesystem,
    runtime: Runtime,
    threads: Threads,
    opened: AsyncExitStack,
    reload: Callable[[], Reloaded],
    *,
    for_job: bool,
) -> Parts:
    """Open the queues and the sockets; `opened` closes them. Raises ConfigError, StorageError or ListenError.

    `reload` is for who asks for it on the control socket; a daemon `for_job` has been handed sockets that end with it.
    """
    config, limits = settings.config, limits_of(settings.config)
    others: list[Service] = []

    destinations = Destinations(settings, fs, runtime, threads)
    opened.push_async_callback(destinations.close)
    destinations.open_all()
    pipelines = destinations.pipelines
    deliveries: list[Service] = [destinations]

    front = None
    if config.front.enabled:
        front = FrontService(settings)
        opened.push_async_callback(front.close)
        others.append(front)

    bound = open_sockets(config, environ, for_job=for_job)
    for socket in bound.values():
        opened.callback(socket.release)
    max_connections = connection_limits(config)
    intake = Intake(destinations.taking, config.routing)
    others.append(IntakeService(intake))
    listeners: list[ListenerService] = []
    if "stream" in bound:
        listeners.append(StreamService(StreamListener(bound["stream"], intake, max_connections.stream)))
    if "datagram" in bound:
        listeners.append(ListenerService(DatagramListener(bound["datagram"], intake)))
    if over_http := [bound[role] for role in HTTP_ROLES if role in bound]:
        forward = front.forward if front is not None else None
        http = HttpListener(over_http, intake, access_policies(settings), max_connections.http, forward=forward)
        path = str(config.http.socket) if config.http.socket is not None else None
        address = sockets.tcp_address(bound["http_tcp"]) if "http_tcp" in bound else None
        listeners.append(HttpService(http, path, address, front))

    adoptions: list[Adoption] = []
    if config.queue.adopt is not None:
        policies, home = adoption_policies(settings, runtime), config.queue.directory
        adoptions.append(Adoption(fs, config.queue.adopt, home, limits, policies, runtime, destinations.taking))
        deliveries += [AdoptionService(adoption, runtime) for adoption in adoptions]

    describe = [*(service.describe for service in [*others, *deliveries, *listeners])]
    control = Control(
        pipelines,
        [service.listener for service in listeners],
        runtime.wall_clock,
        reload=reload,
        reloaded=destinations.opened,
        describe=describe,
        cache_uses=intake.cache_uses.by_ci,
        deliveries=adoptions,
        failed=destinations.failed,
    )
    others.append(ControlService(bound["control"].socket, control))
    if for_metrics := [bound[role] for role in METRICS_ROLES if role in bound]:
        path = str(config.metrics.socket) if config.metrics.socket is not None else None
        address = sockets.tcp_address(bound["metrics_tcp"]) if "metrics_tcp" in bound else None
        metrics = MetricsService(ScrapeListener(for_metrics, control.monitoring.routes), path, address)
        describe.append(metrics.describe)
        others.append(metrics)
    return Parts(destinations, listeners, deliveries, others)
