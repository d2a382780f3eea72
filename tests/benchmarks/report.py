"""What a benchmark found: samples of several rounds, their medians and spread, and the agent's ratios to each other subject.

It knows arithmetic and how to print a table. It must never know what was measured, or how.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

AGENT = "agent"

Figures = Mapping[str, float]  # the name of a figure, unit included, and its value
Key = tuple[str, str]  # a case and a subject


class Sample(NamedTuple):
    """What one round found of one subject (the agent, a peer, a floor) in one case."""

    case: str
    subject: str
    figures: Figures


@dataclass(frozen=True)
class Report:
    """All samples of a benchmark, in the order they were taken; `facts` say under which conditions.

    Samples of the same round have the same index among those of their case and subject.
    """

    name: str
    samples: Sequence[Sample]
    facts: Mapping[str, object] = field(default_factory=dict)

    def medians(self) -> list[Sample]:
        """Return one sample for each case and subject: the median of each figure."""
        return _summed_up(statistics.median, self._rounds())

    def ratios(self) -> list[Sample]:
        """Return for each case and other subject the median over the rounds of the agent's figures divided by its own."""
        return _summed_up(statistics.median, self._divided_rounds())

    def spreads(self) -> list[Sample]:
        """Return how far the rounds of each median and ratio lie apart, in percent of it, where there are several."""
        groups = self._rounds() | self._divided_rounds()
        return _summed_up(_spread, {key: rounds for key, rounds in groups.items() if len(rounds) > 1})

    def text(self) -> str:
        """Return a table for people: for each case the medians and then the ratios, each with its spread below."""
        spreads = {sample[:2]: Sample("", "  spread, %", sample.figures) for sample in self.spreads()}
        rows: list[Sample] = []
        for sample in sorted([*self.medians(), *self.ratios()], key=lambda each: self._cases().index(each.case)):
            rows += [sample, *([spreads[sample[:2]]] if sample[:2] in spreads else [])]
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.name} ({facts})\n{_table(rows)}"

    def as_json(self) -> dict[str, object]:
        """Return everything, ready to be written as JSON."""
        return {
            "benchmark": self.name,
            "facts": dict(self.facts),
            "medians": [sample._asdict() for sample in self.medians()],
            "ratios": [sample._asdict() for sample in self.ratios()],
            "spreads": [sample._asdict() for sample in self.spreads()],
            "samples": [sample._asdict() for sample in self.samples],
        }

    def _cases(self) -> list[str]:
        return list(dict.fromkeys(sample.case for sample in self.samples))

    def _rounds(self) -> dict[Key, list[Figures]]:
        """Return the figures of each round by case and subject; a case's subjects stand together."""
        groups: dict[Key, list[Figures]] = {}
        for sample in sorted(self.samples, key=lambda sample: self._cases().index(sample.case)):
            groups.setdefault(sample[:2], []).append(sample.figures)
        return groups

    def _divided_rounds(self) -> dict[Key, list[Figures]]:
        groups = self._rounds()
        return {
            (case, f"{AGENT} / {subject}"): _divided(groups[case, AGENT], rounds)
            for (case, subject), rounds in groups.items()
            if subject != AGENT and (case, AGENT) in groups
        }


def _summed_up(summary: Callable[[Sequence[float]], float], groups: Mapping[Key, Sequence[Figures]]) -> list[Sample]:
    return [Sample(case, subject, _by_figure(summary, rounds)) for (case, subject), rounds in groups.items()]


def _spread(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return 100 * (max(values) - min(values)) / middle if middle else 0.0


def _divided(agent: Sequence[Figures], other: Sequence[Figures]) -> list[Figures]:
    return [
        {name: value / theirs[name] for name, value in ours.items() if theirs.get(name)}
        for ours, theirs in zip(agent, other, strict=True)
    ]


def _by_figure(summary: Callable[[Sequence[float]], float], rounds: Sequence[Figures]) -> dict[str, float]:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: summary([figures[name] for figures in rounds if name in figures]) for name in names}


def _table(rows: Sequence[Sample]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    cells = [["", "", *names]]
    cells += [[row.case, row.subject, *(_number(row.figures.get(name)) for name in names)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        texts = (f"{text:<{width}}" for text, width in zip(line[:2], widths[:2], strict=True))
        numbers = (f"{text:>{width}}" for text, width in zip(line[2:], widths[2:], strict=True))
        lines.append("  ".join([*texts, *numbers]).rstrip() + "\n")
    return "".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
