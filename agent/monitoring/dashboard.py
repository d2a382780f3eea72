"""The Grafana dashboard, made of one table of panels. Every expression is one that Prometheus can be asked as it is."""

import json
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

_WHERE = '{job=~"$job",instance=~"$instance"}'
_WIDTH, _HEIGHT = 24, 8


class Panel(NamedTuple):
    """A panel: `queries` are expressions with the legends of their series; `width` is out of 24."""

    title: str
    about: str
    kind: Literal["stat", "timeseries", "state-timeline"]
    unit: str
    queries: Mapping[str, str]
    width: int = 12


def _events(window: str, by: str = "", **labels: str) -> str:
    chosen = "".join(f',{name}="{value}"' for name, value in labels.items())
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(increase(artifacts_agent_cache_events_total{_WHERE[:-1]}{chosen}}}[{window}]))"


def _unanswered(window: str, by: str = "") -> str:
    return f"clamp_min({_events(window, by, source='LOCAL', event='MISS')} - {_events(window, by, source='REMOTE')}, 0)"


def _tasks(window: str, by: str = "") -> str:
    local_hits, answers = _events(window, by, source="LOCAL", event="HIT"), _events(window, by, source="REMOTE")
    return f"({local_hits} + {answers} + {_unanswered(window, by)})"


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate(artifacts_agent_{metric}{_WHERE}[$__rate_interval]))"


def _gauge(metric: str, by: str = "instance, destination") -> str:
    return f"max by ({by}) (artifacts_agent_{metric}{_WHERE})"


def _quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate(artifacts_agent_{metric}_bucket{_WHERE}[$__rate_interval])))"


_TASKS_ARE = "A task counts once, with the best answer that it got."
PANELS = (
    Panel(
        "Hit rate",
        _TASKS_ARE,
        "stat",
        "percentunit",
        {"": f"{_events('$__range', event='HIT')} / {_tasks('$__range')}"},
        4,
    ),
    Panel("Tasks", _TASKS_ARE, "stat", "short", {"": _tasks("$__range")}, 4),
    Panel(
        "Task time saved",
        "What the hits would have taken. Tasks run in parallel, so builds were shorter by less.",
        "stat",
        "s",
        {"": f"sum(increase(artifacts_agent_cache_time_saved_seconds_total{_WHERE}[$__range]))"},
        4,
    ),
    Panel(
        "Unanswered",
        "Tasks without an answer from the remote cache: off, or failing.",
        "stat",
        "short",
        {"": _unanswered("$__range")},
        4,
    ),
    Panel(
        "Queued events",
        "Events that wait on disk.",
        "stat",
        "short",
        {"": f"sum(artifacts_agent_events_queued{_WHERE})"},
        4,
    ),
    Panel(
        "Dropped events",
        "Events that were lost.",
        "stat",
        "short",
        {"": f"sum(increase(artifacts_agent_events_dropped_total{_WHERE}[$__range]))"},
        4,
    ),
    Panel(
        "Tasks in an hour",
        _TASKS_ARE,
        "timeseries",
        "short",
        {
            "local hit": _events("1h", source="LOCAL", event="HIT"),
            "remote hit": _events("1h", source="REMOTE", event="HIT"),
            "miss": _events("1h", source="REMOTE", event="MISS"),
            "unanswered": _unanswered("1h"),
        },
    ),
    Panel(
        "Hit rate by CI system, over a day",
        _TASKS_ARE,
        "timeseries",
        "percentunit",
        {"{{ci}}": f"{_events('1d', 'ci', event='HIT')} / {_tasks('1d', 'ci')}"},
    ),
    Panel(
        "Task time saved in an hour",
        "By source.",
        "timeseries",
        "s",
        {"{{source}}": f"sum by (source) (increase(artifacts_agent_cache_time_saved_seconds_total{_WHERE}[1h]))"},
    ),
    Panel(
        "Events",
        "In and out.",
        "timeseries",
        "cps",
        {"accepted": _rate("events_accepted_total", "job"), "delivered": _rate("events_delivered_total", "job")},
    ),
    Panel(
        "Delivery",
        "The state of each destination.",
        "state-timeline",
        "short",
        {"{{instance}} {{destination}} {{state}}": _gauge("delivery_state", "instance, destination, state")},
    ),
    Panel(
        "Oldest event",
        "How long the oldest event has waited.",
        "timeseries",
        "s",
        {"{{instance}} {{destination}}": _gauge("oldest_event_age_seconds")},
    ),
    Panel(
        "Queue",
        "In proportion to its limit.",
        "timeseries",
        "percentunit",
        {"{{instance}} {{destination}}": f"{_gauge('queue_bytes')} / {_gauge('queue_limit_bytes')}"},
    ),
    Panel(
        "Delay",
        "From acceptance to delivery.",
        "timeseries",
        "s",
        {"median": _quantile(0.5, "event_delay_seconds"), "99 %": _quantile(0.99, "event_delay_seconds")},
    ),
    Panel(
        "Requests",
        "How long requests to the API take.",
        "timeseries",
        "s",
        {"median": _quantile(0.5, "request_duration_seconds"), "99 %": _quantile(0.99, "request_duration_seconds")},
    ),
    Panel(
        "Answers",
        "Of the API, by status; none is no answer.",
        "timeseries",
        "reqps",
        {"{{status}}": _rate("responses_total", "status")},
    ),
    Panel("Dropped", "By reason.", "timeseries", "cps", {"{{reason}}": _rate("events_dropped_total", "reason")}),
    Panel(
        "Refused",
        "Events that the API refused, or no rule lets in, and lines that were not valid.",
        "timeseries",
        "cps",
        {
            "dead-lettered": _rate("events_dead_lettered_total", "job"),
            "denied": _rate("events_denied_total", "job"),
            "rejected": _rate("lines_rejected_total", "job"),
        },
    ),
    Panel(
        "Last delivery",
        "How long ago.",
        "timeseries",
        "s",
        {"{{instance}} {{destination}}": f"time() - {_gauge('last_delivery_timestamp_seconds')}"},
    ),
    Panel(
        "Process",
        "CPU in cores.",
        "timeseries",
        "short",
        {"{{instance}}": f"rate(process_cpu_seconds_total{_WHERE}[$__rate_interval])"},
    ),
    Panel("Memory", "Resident.", "timeseries", "bytes", {"{{instance}}": f"process_resident_memory_bytes{_WHERE}"}),
    Panel(
        "Versions",
        "Which agents run.",
        "stat",
        "short",
        {"{{instance}} {{version}}": f"artifacts_agent_build_info{_WHERE}"},
    ),
)


def render() -> str:
    """Return the dashboard as JSON, fit for Grafana's import."""
    return json.dumps(_dashboard(), indent=2) + "\n"


def _dashboard() -> dict[str, object]:
    return {
        "title": "artifacts-agent",
        "uid": "artifacts-agent",
        "tags": ["artifacts-agent"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _variable("job", "label_values(artifacts_agent_build_info, job)"),
                _variable("instance", 'label_values(artifacts_agent_build_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": list(_panels()),
    }


def _variable(name: str, query: str) -> dict[str, object]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    everything = {"selected": True, "text": "All", "value": "$__all"}
    facts = {
        "name": name,
        "type": "query",
        "datasource": source,
        "definition": query,
        "query": {"query": query, "refId": name},
    }
    return {**facts, "multi": True, "includeAll": True, "allValue": ".*", "current": everything, "refresh": 2}


def _panels() -> Iterator[dict[str, object]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    x = y = 0
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + _HEIGHT
        targets = [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend or "__auto",
            }
            for index, (legend, expression) in enumerate(panel.queries.items())
        ]
        yield {
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.about,
            "datasource": source,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": targets,
        }
        x += panel.width
