"""What a benchmark found: samples of several rounds, their medians, and the median ratio of the agent to what it is held against.

It knows arithmetic and how to print a table. It must never know what was measured, or how.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

AGENT = "agent"

Figures = Mapping[str, float]  # the name of a figure, unit included, and its value


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
    baseline: str | None = None

    def medians(self) -> list[Sample]:
        """Return one sample for each case and subject: the median of each figure."""
        return [
            Sample(case, subject, _by_figure(statistics.median, [sample.figures for sample in group]))
            for (case, subject), group in _grouped(self.samples).items()
        ]

    def ratios(self) -> list[Sample]:
        """Return for each case the median over the rounds of each figure, the agent's divided by the baseline's."""
        groups = _grouped(self.samples)
        pairs = [
            (case, groups[case, AGENT], groups.get((case, self.baseline or ""), [])) for case, _ in _agents(groups)
        ]
        return [
            Sample(case, f"{AGENT} / {self.baseline}", _by_figure(statistics.median, _divided(agent, baseline)))
            for case, agent, baseline in pairs
            if baseline
        ]

    def ratio(self, case: str, figure: str) -> float:
        """Return one of the ratios. Raises KeyError or StopIteration if there is none."""
        return next(sample for sample in self.ratios() if sample.case == case).figures[figure]

    def text(self) -> str:
        """Return a table for people: the medians, and below each case the ratios."""
        ratios = {sample.case: sample for sample in self.ratios()}
        rows: list[Sample] = []
        medians = self.medians()
        for index, sample in enumerate(medians):
            rows.append(sample)
            last = index + 1 == len(medians) or medians[index + 1].case != sample.case
            if last and sample.case in ratios:
                rows.append(ratios[sample.case])
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.name} ({facts})\n{_table(rows)}"

    def as_json(self) -> dict[str, object]:
        """Return everything, ready to be written as JSON."""
        return {
            "benchmark": self.name,
            "facts": dict(self.facts),
            "medians": [sample._asdict() for sample in self.medians()],
            "ratios": [sample._asdict() for sample in self.ratios()],
            "samples": [sample._asdict() for sample in self.samples],
        }


def _grouped(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Return the samples by case and subject; a case's subjects stand together."""
    cases = list(dict.fromkeys(sample.case for sample in samples))
    ordered = sorted(samples, key=lambda sample: cases.index(sample.case))
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in ordered:
        groups.setdefault((sample.case, sample.subject), []).append(sample)
    return groups


def _agents(groups: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(case, subject) for case, subject in groups if subject == AGENT]


def _divided(agent: Sequence[Sample], baseline: Sequence[Sample]) -> list[Figures]:
    return [
        {name: value / b.figures[name] for name, value in a.figures.items() if b.figures.get(name)}
        for a, b in zip(agent, baseline, strict=True)
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
