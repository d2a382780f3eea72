"""What `monitoring` prints, tried with Prometheus itself: rules, scrape configuration, each query of the dashboard."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from agent.delivery.batching import Batch
from agent.events import Context, encode_events
from agent.fleet import message, names
from agent.monitoring.dashboard import FLEET, PANELS, Panel
from agent.queue.cursor import Span
from tests.support.api_server import ApiServer
from tests.support.command import run_command
from tests.support.daemon import Daemon, clean_environment
from tests.support.documents import code, read, rows, section
from tests.support.nats import NatsCluster, free_port, nats_cluster
from tests.support.pipelines import event
from tests.support.process import running
from tests.support.source import metric_names
from tests.support.tools import require_tool
from tests.support.waiting import HUNG_AFTER, eventually

PACKAGE = "apt-get install prometheus"
EVENT = b'{"sessionId":"s","source":"%b","event":"%b","hash":"h","duration":5}\n'
OF_PROCESSES = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def printed(what: str, *options: str) -> str:
    done = run_command("monitoring", what, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def promtool(*args: str | Path) -> str:
    command = [require_tool("promtool", PACKAGE), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Case(NamedTuple):
    """Series of a time in samples of 5 minutes, at whose end an alert fires, or does not."""

    alert: str
    fires: bool
    minutes: int
    series: Mapping[str, str]


def _cache(local_misses: str, remote_hits: str, remote_misses: str, local_hits: str = "0x3000") -> Mapping[str, str]:
    name = 'artifacts_agent_cache_events_total{job="j",instance="i",ci="none",source="%s",event="%s"}'
    return {
        name % ("LOCAL", "HIT"): local_hits,
        name % ("LOCAL", "MISS"): local_misses,
        name % ("REMOTE", "HIT"): remote_hits,
        name % ("REMOTE", "MISS"): remote_misses,
    }


def _stream(size: int, stream: str = "AA_DEAD") -> Mapping[str, str]:
    """Return what two relays say of a stream, one of them no more."""
    return {
        OF_STREAM % ("stream_bytes", "a", stream): "99x2 _x20",
        OF_STREAM % ("stream_bytes", "b", stream): f"{size}x20",
        OF_STREAM % ("stream_limit_bytes", "a", stream): "100x2 _x20",
        OF_STREAM % ("stream_limit_bytes", "b", stream): "100x20",
    }


def _relays(*samples: str) -> Mapping[str, str]:
    """Return what relays say of a team, as long as they say something."""
    return {OF_TEAM % ("events_in_doubt", f"i{index}"): each for index, each in enumerate(samples)}


def _queue(size: int) -> Mapping[str, str]:
    return {
        'artifacts_agent_queue_bytes{job="j",instance="i"}': f"{size}x20",
        'artifacts_agent_queue_limit_bytes{job="j",instance="i"}': "100x20",
    }


DROPPED = 'artifacts_agent_events_dropped_total{job="j",instance="i",destination="default",reason="overflow"}'
FAILING = 'artifacts_agent_storage_failing{job="j",instance="i",destination="default"}'
FAILED = 'artifacts_agent_delivery_state{job="j",instance="i",destination="web",state="failed"}'
PAUSED = 'artifacts_agent_delivery_state{job="j",instance="i",destination="default",state="paused"}'
OLDEST = 'artifacts_agent_oldest_event_age_seconds{job="j",instance="i",destination="default"}'
RELAY_PAUSED = 'artifacts_agent_relay_state{job="j",instance="i",state="paused"}'
ENGINE = 'artifacts_agent_relay_engine_failing{job="j",instance="i"}'
OF_TEAM = 'artifacts_agent_fleet_%s{job="j",instance="%s",team="web"}'
OF_STREAM = 'artifacts_agent_fleet_%s{job="j",instance="%s",stream="%s"}'
NOT_KEPT = 'artifacts_agent_relay_dead_letters_not_kept_total{job="j",instance="i"}'
UP = 'up{job="artifacts-agent",instance="i"}'
# A week and a half: 10 tasks in 5 minutes, 8 of them hits, until on the last day only 2 of them are.
HALF = "0+2x2160 4322+8x600"
DAYS = 8 * 24 * 60 + 12 * 60

CASES = (
    Case("EventsDropped", True, 40, {DROPPED: "0x5 7x20"}),
    Case("EventsDropped", False, 40, {DROPPED: "7x20"}),
    Case("StorageFailing", True, 30, {FAILING: "1x20"}),
    Case("StorageFailing", False, 30, {FAILING: "1x2 0x20"}),
    Case("DestinationFailed", True, 30, {FAILED: "1x20"}),
    Case("DestinationFailed", False, 30, {FAILED: "1x4 0x20"}),
    Case("DeliveryPaused", True, 30, {PAUSED: "1x20"}),
    Case("DeliveryPaused", False, 10, {PAUSED: "1x20"}),
    Case("DeliveryPaused", False, 30, {PAUSED: "1x4 0x20"}),
    Case("OldestEvent", True, 30, {OLDEST: "3700x20"}),
    Case("OldestEvent", False, 30, {OLDEST: "3500x20"}),
    Case("QueueAbove80Percent", True, 30, _queue(81)),
    Case("QueueAbove80Percent", False, 30, _queue(79)),
    Case("RemoteUnanswered", True, 120, _cache("0+50x40", "0+10x40", "0+10x40")),
    Case("RemoteUnanswered", False, 120, _cache("0+50x40", "0+10x40", "0+30x40")),
    Case("RemoteUnanswered", False, 120, _cache("0+5x40", "0x40", "0x40")),
    Case("HitRateDropped", True, DAYS, _cache(HALF, "0x3000", HALF, "0+8x2160 17282+2x600")),
    Case("HitRateDropped", False, DAYS, _cache("0+2x3000", "0x3000", "0+2x3000", "0+8x3000")),
    Case("RelaysPaused", True, 30, {RELAY_PAUSED: "1x20"}),
    Case("RelaysPaused", False, 10, {RELAY_PAUSED: "1x20"}),
    Case("RelayEngineFailing", True, 30, {ENGINE: "1x20"}),
    Case("RelayEngineFailing", False, 30, {ENGINE: "1x1 0x20"}),
    Case("NoRelay", True, 120, _relays("0x10", "0x15")),
    Case("NoRelay", False, 120, _relays("0x10", "0x40")),
    Case("NoRelay", False, 120, _relays("0x10", "0x18 _x4 0x10")),
    Case("NoRelay", False, 40 * 60, _relays("0x10")),
    Case("NoRelay", False, 120, {UP: "1x40"}),
    Case("FleetOldestEvent", True, 30, {OF_TEAM % ("oldest_event_age_seconds", "a"): "3700x20"}),
    Case("FleetOldestEvent", False, 30, {OF_TEAM % ("oldest_event_age_seconds", "a"): "3500x20"}),
    Case("FleetStreamAbove80Percent", True, 40, _stream(81)),
    Case("FleetStreamAbove80Percent", False, 40, _stream(79)),
    Case("FleetStreamAbove80Percent", False, 40, _stream(100, "AA_LEDGER")),
    Case("DeadLettersNotKept", True, 40, {NOT_KEPT: "0x5 7x20"}),
    Case("DeadLettersNotKept", False, 40, {NOT_KEPT: "7x20"}),
    Case("Down", True, 30, {UP: "0x20"}),
    Case("Down", False, 30, {UP: "1x20"}),
)


def _as_promtool_has_it(case: Case) -> dict[str, Any]:
    firing = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if case.fires else []
    asked = {"expr": firing, "eval_time": f"{case.minutes}m", "exp_samples": samples}
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    return {"interval": "5m", "input_series": series, "promql_expr_test": [asked]}


def test_each_alert_fires_when_it_should_and_stays_silent_otherwise(tmp_path: Path) -> None:
    rules, tests = tmp_path / "alerts.yml", tmp_path / "tests.yml"
    rules.write_text(printed("alerts"))
    promtool("check", "rules", rules)
    groups = [_as_promtool_has_it(case) for case in CASES]
    asked = {"rule_files": ["alerts.yml"], "evaluation_interval": "5m", "tests": groups}
    tests.write_text(json.dumps(asked))  # JSON is YAML
    promtool("test", "rules", tests)
    assert {case.alert for case in CASES} == set(re.findall(r"- alert: (\w+)", rules.read_text()))


def test_the_alerts_are_documented_and_there_is_no_other() -> None:
    named = [name for row in rows(section(read("agent/OPERATIONS.md"), "Alerts")) for name in code(row[0])]
    assert sorted(named) == sorted(re.findall(r"- alert: (\w+)", printed("alerts")))


def test_rules_and_dashboard_are_about_metrics_that_there_are() -> None:
    text = printed("alerts") + printed("dashboard")
    named = set(re.findall(r"(?<![\w:])(?:artifacts_agent|process)_\w+", text))
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert named
    assert named <= {*metric_names(), *metric_names("agent/control/relay_metrics.py"), *OF_PROCESSES}


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads(printed("dashboard"))
    assert [panel["title"] for panel in dashboard["panels"]] == [panel.title for panel in (*PANELS, *FLEET)]
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_the_scrape_configuration_has_the_configured_address(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[metrics]\nlisten = "[::1]:9999"\n')
    assert 'targets: ["[::1]:9999"]' in printed("scrape", "--config", str(config))
    assert 'targets: ["127.0.0.1:9902"]' in printed("scrape")


class Prometheus(NamedTuple):
    url: str

    def ask(self, path: str, **params: str) -> Any:
        return (
            httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=HUNG_AFTER).raise_for_status().json()["data"]
        )

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with what is printed, scraping every second."""
    program = require_tool("prometheus", PACKAGE)
    (directory / "artifacts-agent.rules.yml").write_text(printed("alerts"))
    config = directory / "prometheus.yml"
    scrape = printed("scrape").replace('"127.0.0.1:9902"]', f'"{target}"]')
    config.write_text("global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n" + scrape)
    promtool("check", "config", config)
    storage = f"--storage.tsdb.path={directory / 'tsdb'}"
    command: list[str | Path] = [program, f"--config.file={config}", storage, "--web.listen-address=127.0.0.1:0"]
    with running(command, {}) as child:
        found = child.wait_for_line(r"Listening on.* address=(127[\d.]+:\d+)")
        yield Prometheus(f"http://{found[1]}")


def test_prometheus_scrapes_an_agent_and_every_query_of_the_dashboard_has_an_answer(
    tmp_path: Path, api_server: ApiServer
) -> None:
    with Daemon(tmp_path / "d", api_server.url, {"metrics": {"listen": "127.0.0.1:0"}}) as daemon:
        found = daemon.report().metrics
        assert found is not None
        assert found.listen is not None
        with prometheus(tmp_path, found.listen) as server:
            eventually(lambda: server.query('up{job="artifacts-agent"}'), bool)
            with daemon.connect() as client:
                uses = ((b"LOCAL", b"MISS"), (b"REMOTE", b"HIT"), (b"LOCAL", b"HIT"), (b"REMOTE", b"MISS"))
                client.send(b"".join(EVENT % use for use in uses))
                client.wait_settled(4)
            _all_answered(server, PANELS)
            groups = server.ask("rules")["groups"]
            assert len(groups) == 3
            assert not [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]
            saved = "sum(artifacts_agent_cache_time_saved_seconds_total)"
            eventually(lambda: server.query(saved), lambda rows: float(rows[0]["value"][1]) == 0.01)


def _all_answered(server: Prometheus, panels: Sequence[Panel]) -> None:
    for expression in (query for panel in panels for query in panel.queries.values()):
        filled = re.sub(r"\$(job|instance)\b", ".*", expression)
        filled = filled.replace("$__rate_interval", "1m").replace("$__range", "1h")
        eventually(lambda asked=filled: server.query(asked), bool)  # type: ignore[misc]


def test_prometheus_scrapes_a_relay_and_every_query_of_a_fleet_has_an_answer(
    tmp_path: Path, api_server: ApiServer
) -> None:
    target = f"127.0.0.1:{free_port()}"
    with nats_cluster(tmp_path / "nats") as cluster:
        config = tmp_path / "relay.toml"
        config.write_text(
            f'[relay]\nservers = "{cluster.urls[0]}"\nteam = "web"\n[metrics]\nlisten = "{target}"\n'
            f'[api]\nurl = "{api_server.url}"\nmax_requests_per_minute = 600\n[batch]\nmax_delay = "50ms"\n'
        )
        command: list[str | Path] = [sys.executable, "-m", "agent.cli", "relay", "--config", config]
        with running(command, clean_environment()) as relay, prometheus(tmp_path, target) as server:
            relay.wait_for_line("(connected)")
            asyncio.run(_publish(cluster))
            _all_answered(server, FLEET)
            delivered = 'artifacts_agent_fleet_events_total{team="web",outcome="delivered"}'
            eventually(lambda: server.query(delivered), lambda rows: bool(rows) and rows[0]["value"][1] == "1")


async def _publish(cluster: NatsCluster) -> None:
    batch = Batch(Context(), encode_events([event("h")]), (Span(1, 2),))
    engine = cluster.engine()
    await engine.publish(names.events_subject("web", "linux"), batch.lines, message.encode(batch, "q"))
    await engine.aclose()


@pytest.mark.parametrize("what", ["alerts", "dashboard", "scrape"])
def test_what_is_printed_needs_no_daemon_and_no_configuration(what: str) -> None:
    assert printed(what)
