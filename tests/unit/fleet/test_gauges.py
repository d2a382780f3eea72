"""What a relay says to Prometheus of the fleet: what the engine said last, and nothing that it might be now."""

from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.control import relay_metrics
from agent.delivery.policy import DeliverySettings
from agent.fleet import names
from agent.fleet.gauges import LOOK_SECONDS
from agent.fleet.relay import Relay
from tests.support import virtual_time
from tests.support.pipelines import EPOCH
from tests.support.relays import SUBJECT, fleet

pytestmark = pytest.mark.anyio

OF_ENGINE = {
    'messages_waiting{team="web"}': 0.0,
    'messages_held{team="web"}': 0.0,
    'oldest_event_age_seconds{team="web"}': 0.0,
    'stream_bytes{stream="AA_EVENTS"}': 0.0,
    'stream_bytes{stream="AA_LEDGER"}': 0.0,
    'stream_bytes{stream="AA_DEAD"}': 0.0,
}


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


def scraped(relay: Relay) -> Mapping[str, float]:
    """Return the samples of the fleet, named as in the text without what they all begin with."""
    text = relay_metrics.render(relay).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    named = [
        (each.name, ",".join(f'{key}="{value}"' for key, value in sorted(each.labels.items())), each)
        for each in samples
    ]
    prefix = "artifacts_agent_fleet_"
    return {
        f"{name.removeprefix(prefix)}{{{labels}}}": each.value
        for name, labels, each in named
        if name.startswith(prefix)
    }


def of_engine(relay: Relay) -> Mapping[str, float]:
    """Return those of them that the engine is asked for."""
    return {name: value for name, value in scraped(relay).items() if not name.startswith(("events", "max_requests"))}


async def test_what_waits_is_what_the_engine_said_last_and_nothing_once_it_says_no_more() -> None:
    async with fleet() as f:
        f.transport.hold()
        life = await f.start()
        assert of_engine(life.relay) == {}
        f.tasks.start_soon(life.relay.gauges.run)
        await anyio.sleep(1)
        assert of_engine(life.relay) == OF_ENGINE
        await f.publish("a", "b", enqueued_at=EPOCH - 600)
        await anyio.sleep(1)
        assert of_engine(life.relay) == OF_ENGINE  # it is not asked for each look
        await anyio.sleep(LOOK_SECONDS)
        found = of_engine(life.relay)
        assert (found['messages_waiting{team="web"}'], found['messages_held{team="web"}']) == (0, 1)
        assert 600 < found['oldest_event_age_seconds{team="web"}'] < 600 + 2 * LOOK_SECONDS
        assert found['stream_bytes{stream="AA_EVENTS"}'] > 0
        f.broker.down = True
        await anyio.sleep(LOOK_SECONDS)
        assert of_engine(life.relay) == {}
        f.broker.down = False
        await anyio.sleep(LOOK_SECONDS)
        assert of_engine(life.relay).keys() == OF_ENGINE.keys()
        f.transport.release()
        await f.settled()


async def test_a_first_message_that_no_agent_wrote_has_no_age() -> None:
    async with fleet() as f:
        f.broker.publish(SUBJECT, b"nothing", {})
        f.broker.publish(names.events_subject("other", "linux"), b"of another team", {})
        life = await f.start(ready=False)
        f.tasks.start_soon(life.relay.gauges.run)
        await anyio.sleep(0.001)
        found = of_engine(life.relay)
        assert (found['messages_waiting{team="web"}'], found['oldest_event_age_seconds{team="web"}']) == (1, 0)


async def test_sums_are_of_the_team_and_come_once_the_ledger_is_read() -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=10, requests_per_minute=90)
        f.broker.down = True
        life = await f.start(ready=False)
        await anyio.sleep(5)
        assert scraped(life.relay) == {}
        f.broker.down = False
        await f.publish("a", "b")
        await f.settled()
        await anyio.sleep(1)
        found = scraped(life.relay)
        assert found['events_total{outcome="delivered",team="web"}'] == 2
        assert found['events_total{outcome="forwarded",team="web"}'] == 2
        assert found['max_requests_per_minute{team="web"}'] == 90
