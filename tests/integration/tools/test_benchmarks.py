"""Every benchmark runs, at a tiny size, with the real daemon and its peer; and the guard of the speed holds."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.benchmarks import compare, short_lived
from tests.benchmarks import turbo as turbo_benchmark
from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.contenders import MissingError, choose, contenders, missing_peers
from tests.benchmarks.harness import Benchmark, main
from tests.benchmarks.report import AGENT
from tests.support import turbo
from tests.support.tools import missing

ROOT = Path(__file__).parents[3]
TINY = ["--events", "1000", "--rounds", "1", "--seconds", "0.2"]
CASES = {
    "throughput": [
        "100 a batch",
        *(f"1,000 a batch{sessions}" for sessions in ("", ", one session", ", a session each")),
        "10,000 a batch",
    ],
    "ingest": ["1 client", "1 client, acks", "4 clients, acks"],
    "short_lived": ["connection each", "datagram each"],
    "client_cost": [
        *(f"emit, daemon {state}" for state in ("idle", "busy", "stopped", "hung", "absent")),
        "artifacts-agent emit",
    ],
    "startup": [
        "--version",
        "emit",
        "exec, an agent runs",
        "exec, an agent of its own",
        "daemon until ready",
        "exec at once",
    ],
    "backlog": ["start", "drain"],
    "idle": ["cold start", "idle"],
    "history": ["1,000 a batch", "10,000 a batch", "report"],
    "front": ["small", "download", "upload"],
    "destinations": ["throughput", "latency", "idle", "idle, each"],
    "fleet": [
        "relay, 100 a message",
        "relay, 1,000 a message",
        "forward",
        "fold, 1 part a record",
        "fold, 10 parts a record",
        "status",
        "runner",
    ],
    "page": ["read anew", "remembered", "memory"],
    "scale": ["clients 1", "clients 10", "clients 100", "clients 1,000", "events 1,000"],
    "top": [f"{events} events/s{watched}" for events in ("0", "1,000") for watched in ("", ", watched")],
    "turbo": [*(case.name for case in turbo_benchmark.CASES), "10 builds"],
}
SMALLER = {"turbo": ["--events", "20"], "startup": ["--events", "3"]}
MAY_BE_ZERO = {
    "% of a core",
    "delivered",
    "requests",
    "wake-ups/s",
    "CPU ms/s",
    "over 1 ms",
    "lost",
    "blocked",
    "unsent %",
}


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_a_benchmark_prints_and_writes_figures_of_every_case(
    benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if benchmark.name == "turbo" and turbo.program() is None:
        missing("turbo", turbo.HINT)
    size = [*TINY, *SMALLER.get(benchmark.name, [])]
    assert main(benchmark, argv=[*size, "--json", str(tmp_path / "json"), "--plots", str(tmp_path / "plots")]) == 0
    (report,) = json.loads((tmp_path / "json").read_text())
    printed = capsys.readouterr().out
    assert list(dict.fromkeys(sample["case"] for sample in report["medians"])) == CASES[benchmark.name]
    assert all(case in printed for case in CASES[benchmark.name])
    for sample in report["samples"]:
        _check(sample["figures"])
    agents = [sample["case"] for sample in report["medians"] if sample["subject"] == AGENT]
    others = [sample["case"] for sample in report["medians"] if sample["subject"] != AGENT]
    assert agents == CASES[benchmark.name]
    assert [sample["case"] for sample in report["ratios"]] == others
    assert sorted(path.name for path in tmp_path.glob("plots/*")) == _plots(benchmark.name)


def _check(figures: Mapping[str, float]) -> None:
    assert figures
    assert [name for name, value in figures.items() if value <= 0 and name not in MAY_BE_ZERO] == []
    assert figures.get("blocked", 0) == figures.get("lost", 0) == 0


def _plots(benchmark: str) -> list[str]:
    kinds = [f"cost-by-{kind}.{suffix}" for kind in ("clients", "events") for suffix in ("png", "svg")]
    return kinds if benchmark == "scale" else []


def test_a_peer_that_is_missing_is_named_and_fails_a_ci_system_only_if_a_package_has_it() -> None:
    alone = choose(None, None, ci=False)
    assert [contender.name for contender in alone] == [AGENT]
    assert missing_peers(alone) == {"without": "syslog-ng and rsyslog"}
    assert missing_peers(choose("syslog-ng", None, ci=True)) == {"without": "rsyslog"}
    assert missing_peers(choose("syslog-ng", "rsyslogd", ci=True)) == {}
    with pytest.raises(MissingError, match="apt-get install syslog-ng-core syslog-ng-mod-http"):
        choose(None, "rsyslogd", ci=True)


@pytest.mark.parametrize(("code", "found"), [(0, True), (1, False)])
def test_an_rsyslog_is_a_peer_only_if_it_takes_the_configuration(tmp_path: Path, code: int, found: bool) -> None:
    program = tmp_path / "rsyslogd"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    present = contenders(environ={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert ("rsyslog" in {contender.name for contender in present}) is found


def test_one_case_can_be_measured_alone_and_without_peers(tmp_path: Path) -> None:
    options = ["--case", "connection each", "--alone", *TINY, "--json", str(tmp_path / "json")]
    assert main(short_lived.BENCHMARK, argv=options) == 0
    (report,) = json.loads((tmp_path / "json").read_text())
    assert [(sample["case"], sample["subject"]) for sample in report["samples"]] == [("connection each", AGENT)]


def test_a_case_that_there_is_not_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(short_lived.BENCHMARK, argv=["--case", "each"])
    assert "choose from 'connection each', 'datagram each'" in capsys.readouterr().err


def _tree(directory: Path) -> Path:
    """Return a tree that has this one's agent and Python, as another checkout has its own."""
    tree = directory / "before"
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / "agent").symlink_to(ROOT / "agent")
    python = tree / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tree


def test_two_trees_are_compared_round_by_round(tmp_path: Path) -> None:
    options = ["--case", "1,000 a batch", "--events", "1000", "--alone"]
    report = compare.compare(_tree(tmp_path), "throughput", 2, options)
    assert [sample.subject for sample in report.samples] == 2 * [AGENT, "floor", "before"]
    assert [sample.subject for sample in report.ratios()] == ["agent / floor", "agent / before"]


def test_the_other_tree_lends_its_agent_to_these_tests(tmp_path: Path) -> None:
    tree = tmp_path / "before"
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / ".venv/bin/python").symlink_to(sys.executable)
    (tree / "agent").mkdir()
    (tree / "agent/__init__.py").write_text("")
    lent = compare.lend(tree, _empty(tmp_path / "lent"))
    program = "import agent, tests.benchmarks.load; print(agent.__file__, tests.benchmarks.load.__file__)"
    found = subprocess.run([sys.executable, "-c", program], cwd=lent.root, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(lent.root / name) for name in ("agent/__init__.py", "tests/benchmarks/load.py")]
    assert (lent.root / "agent").resolve() == tree / "agent"


@pytest.mark.parametrize(("made", "complaint"), [([], "agent does not exist"), (["agent"], "python does not exist")])
def test_a_tree_that_lacks_something_is_refused_in_words(tmp_path: Path, made: Sequence[str], complaint: str) -> None:
    tree = _empty(tmp_path / "tree")
    for name in made:
        (tree / name).mkdir()
    with pytest.raises(ValueError, match=f"{complaint}: give a checkout"):
        compare.lend(tree, _empty(tmp_path / "lent"))


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_size_that_is_no_number_of_events_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(*BENCHMARKS, argv=["--events", "0"])
    assert "0: it should be at least 1" in capsys.readouterr().err


def test_an_event_costs_at_most_a_third_more_than_is_recorded() -> None:
    """In a process of its own: what measures coverage in this one would be measured, too."""
    guard = subprocess.run([sys.executable, "-m", "tests.benchmarks.guard"], cwd=ROOT, capture_output=True, text=True)
    assert guard.returncode == 0, guard.stdout + guard.stderr
    assert "CPU per event" in guard.stdout
