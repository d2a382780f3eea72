"""The Grafana dashboard, made of one table of panels. Every expression is one that Prometheus can be asked as it is."""

import json
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

_WHERE = '{job=~"$job",instance=~"$instance"}'
_WIDTH, _HEIGHT, _ROW_HEIGHT = 24, 8, 1


class Panel(NamedTuple):
    """A panel: `queries` are expressions with the legends of their series; `width` is out of 24. A row is a title alone."""

    title: str
    about: str
    kind: Literal["stat", "timeseries", "state-timeline", "row"]
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


def _of_team(metric: str, by: str = "team") -> str:
    """Return what each relay of a team says of all: once."""
    return f"max by ({by}) (artifacts_agent_fleet_{metric}{_WHERE})"


# By team: only what is said of a fleet has the label.
_REQUESTS = (
    f"60 * sum by (team) (rate(artifacts_agent_responses_total{_WHERE}[$__rate_interval])"
    f" * on (job, instance) group_left (team) (artifacts_agent_fleet_events_in_doubt{_WHERE} >= bool 0))"
)
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

FLEET = (
    Panel("Fleet", "What relays deliver for runners that forward.", "row", "short", {}, _WIDTH),
    Panel(
        "Lag",
        "Messages that no relay has taken yet, and those that relays hold.",
        "timeseries",
        "short",
        {"{{team}} waiting": _of_team("messages_waiting"), "{{team}} held": _of_team("messages_held")},
    ),
    Panel(
        "Oldest event in the engine",
        "How long ago the events of the first message were accepted.",
        "timeseries",
        "s",
        {"{{team}}": _of_team("oldest_event_age_seconds")},
    ),
    Panel(
        "Events of the fleet",
        "What came to the engine, and what has become of it.",
        "timeseries",
        "cps",
        {
            "{{team}} {{outcome}}": "max by (team, outcome)"
            f" (rate(artifacts_agent_fleet_events_total{_WHERE}[$__rate_interval]))"
        },
    ),
    Panel(
        "Requests in a minute",
        "Of all relays of a team, with events.",
        "timeseries",
        "short",
        {"{{team}}": _REQUESTS, "{{team}} at most": _of_team("max_requests_per_minute")},
    ),
    Panel(
        "Events in doubt",
        "Under way, or delivered perhaps once more.",
        "timeseries",
        "short",
        {"{{team}}": _of_team("events_in_doubt")},
    ),
    Panel(
        "Streams",
        "In proportion to their limits.",
        "timeseries",
        "percentunit",
        {"{{stream}}": f"{_of_team('stream_bytes', 'stream')} / {_of_team('stream_limit_bytes', 'stream')}"},
    ),
    Panel(
        "Relays",
        "The state of each. All of a team are paused together, but for one whose token alone is wrong.",
        "state-timeline",
        "short",
        {"{{instance}} {{state}}": _gauge("relay_state", "instance, state")},
    ),
    Panel(
        "Engine",
        "1 while it refuses a relay something, or does not answer.",
        "state-timeline",
        "short",
        {"{{instance}}": _gauge("relay_engine_failing", "instance")},
    ),
    Panel(
        "Held by relays",
        "Events that a relay has taken and not settled.",
        "timeseries",
        "short",
        {"{{instance}}": _gauge("relay_events_held", "instance")},
    ),
    Panel(
        "Unreadable, and not kept",
        "Messages that no agent wrote, and dead letters for which AA_DEAD has no room.",
        "timeseries",
        "cps",
        {
            "unreadable": _rate("relay_messages_unreadable_total", "job"),
            "not kept": _rate("relay_dead_letters_not_kept_total", "job"),
        },
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
    height = _HEIGHT
    for number, panel in enumerate((*PANELS, *FLEET), 1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + height
        height = _ROW_HEIGHT if panel.kind == "row" else _HEIGHT
        targets = [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend or "__auto",
            }
            for index, (legend, expression) in enumerate(panel.queries.items())
        ]
        row = {"collapsed": False, "panels": []} if panel.kind == "row" else {}
        yield {
            **row,
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.about,
            "datasource": source,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": targets,
        }
        x += panel.width
