"""The comparison of turbo alone with turbo through the agent as tests/README.md shows it: a line for each case, in Markdown.

It knows the medians and their names. It must never know how they came about.
"""

from tests.benchmarks.report import AGENT, Figures, Report

ALONE = "turbo alone"
_FIGURES = ("delivered", "requests", "at exit, ms", "build, ms")


class TurboReport(Report):
    """A report that prints its table as Markdown, too."""

    def text(self) -> str:
        """Return the table for people, and below it the one for tests/README.md."""
        return f"{super().text()}\n{self.markdown()}"

    def markdown(self) -> str:
        """Return the table for tests/README.md: for each figure turbo alone, and then through the agent."""
        medians = {(sample.case, sample.subject): sample.figures for sample in self.medians()}
        head = ["", "made", *(f"{name} → agent" for name in _FIGURES)]
        lines = [head, ["---", *["--:"] * (len(head) - 1)]]
        lines += [
            _row(case, medians[case, ALONE], medians[case, AGENT]) for case in dict.fromkeys(key[0] for key in medians)
        ]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(case: str, alone: Figures, through: Figures) -> list[str]:
    made = f"{alone['made']:.0f}"
    return [case, made, *(f"{_number(alone, name)} → {_number(through, name)}" for name in _FIGURES)]


def _number(figures: Figures, name: str) -> str:
    return f"{figures[name]:,.0f}" if name in figures else "-"
