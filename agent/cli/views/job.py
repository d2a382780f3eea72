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


def job_summary(total: Totals) -> str:
    """Return the same as Markdown, and what it does not say."""
    return f"**{job_line(total)}**. Tasks run in parallel: the build got shorter by less.\n\n"
