"""What all benchmarks have in common: the command line, the rounds, the files, and the output.

It knows sizes and where to write. It must never know what a benchmark measures.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.contenders import MissingError
from tests.benchmarks.report import Report
from tests.benchmarks.usage import load_average


@dataclass(frozen=True)
class Size:
    """How much to measure: `rounds` times so many events. What takes time rather than events takes `seconds`.

    `directory` is empty and on the disk that is to be measured; `plots` is where to write plots. `cases` are the only ones to
    measure, if there are any; `alone` leaves the peers out.
    """

    events: int
    rounds: int
    seconds: float
    directory: Path
    plots: Path | None = None
    cases: Sequence[str] = ()
    alone: bool = False

    def chosen(self, cases: Iterable[str]) -> list[str]:
        """Return those of a benchmark's cases that are to be measured."""
        return [case for case in cases if not self.cases or case in self.cases]

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """Lend an empty directory, whose path is short enough for sockets."""
        path = Path(tempfile.mkdtemp(dir=self.directory, prefix=""))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def facts(self, **more: object) -> dict[str, object]:
        """Return the conditions that a report states."""
        return {"events": f"{self.events:,}", "rounds": self.rounds, "load average": load_average()} | more


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; `events` and `rounds` are what it measures unless told otherwise, `cases` what it can measure alone."""

    name: str
    run: Callable[[Size], Report]
    events: int = 1_000_000
    rounds: int = 3
    cases: Sequence[str] = ()


def main(*benchmarks: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Run benchmarks as the command line says; return the exit code."""
    options = _parser(benchmarks).parse_args(argv)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed agent is compiled, and so is what is measured
    reports: list[Report] = []
    with _cleaning_up_on_sigterm():
        for benchmark in benchmarks:
            try:
                reports.append(_run(benchmark, options))
            except MissingError as error:
                sys.stderr.write(f"{benchmark.name}: {error}\n")
                return 1
            sys.stdout.write(reports[-1].text() + "\n")
            sys.stdout.flush()
            if options.json is not None:
                options.json.write_text(json.dumps([report.as_json() for report in reports], indent=1) + "\n")
    return 0


@contextmanager
def _cleaning_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does: what it started ends with it, and its files go."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(benchmark: Benchmark, options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="b-") as directory:
        return benchmark.run(_size(benchmark, options, Path(directory)))


def _size(benchmark: Benchmark, options: argparse.Namespace, directory: Path) -> Size:
    return Size(
        events=min(options.events or benchmark.events, benchmark.events if options.cap else sys.maxsize),
        rounds=options.rounds or benchmark.rounds,
        seconds=options.seconds,
        directory=directory,
        plots=options.plots,
        cases=options.case,
        alone=options.alone,
    )


def _parser(benchmarks: Sequence[Benchmark]) -> argparse.ArgumentParser:
    defaults = ", ".join(f"{benchmark.name} {benchmark.events:,}" for benchmark in benchmarks)
    parser = argparse.ArgumentParser(description="Each figure is the median of the rounds.")
    parser.add_argument("--events", type=positive, help=f"how many events to measure with; by default {defaults}")
    parser.add_argument("--rounds", type=positive, help="how often to measure each contender, in turn")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch an idle daemon; by default 60")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there, too")
    parser.add_argument(
        "--plots", type=Path, metavar="DIRECTORY", help="where to write plots (needs the extra `bench`)"
    )
    parser.add_argument("--directory", type=Path, help="on which disk to measure; by default that of TMPDIR")
    cases = benchmarks[0].cases if len(benchmarks) == 1 else ()
    if cases:
        parser.add_argument("--case", action="append", choices=cases, help="measure only this; may be repeated")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.set_defaults(case=[], cap=len(benchmarks) > 1)
    return parser


def positive(text: str) -> int:
    """Read a number for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: it should be at least 1")
    return number
