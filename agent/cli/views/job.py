"""What the cache did for a job, in one line. Pure, and quick to import."""

from agent.cli.views.words import amount, clock, percent
from agent.usage.counting import Totals


def job_line(total: Totals) -> str:
    """Return such as "cache: 120 of 130 tasks (92 %), 11m02s of task time saved, 3 unanswered"."""
    facts = [f"cache: {total.hits:,} of {amount(total.tasks, 'task')} ({percent(total.hit_rate)})"]
    facts.append(f"{clock(total.saved_ms / 1000)} of task time saved")
    if total.unanswered:
        facts.append(f"{total.unanswered:,} unanswered")
    return ", ".join(facts)


def job_table(total: Totals) -> list[str]:
    """Return what is behind that line, a number a line."""
    numbers = (("local hits", total.local_hits), ("remote hits", total.remote_hits), ("misses", total.misses))
    rows = [f"{number:>10,}  {name}" for name, number in (*numbers, ("unanswered", total.unanswered))]
    saved = (("local hits", total.local_saved_ms), ("remote hits", total.remote_saved_ms))
    rows += [f"{clock(ms / 1000):>10}  of task time saved by {name}" for name, ms in saved]
    return [*rows, "Tasks run in parallel: the build got shorter by less."]


def job_summary(total: Totals) -> str:
    """Return the same as Markdown, and what it does not say."""
    return f"**{job_line(total)}**. Tasks run in parallel: the build got shorter by less.\n\n"
