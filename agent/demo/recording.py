"""What the builds replay: some runs of turbo 2.11.11, one session each, with the events as turbo sent them.

`events.jsonl` is trimmed from the project's recording (tests/data): no event is changed, but only some sessions are kept, and
of the largest only the beginning.
"""

from importlib import resources

import msgspec

from agent.events import Event


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of a build. `case` names it in the project's recording; `ci` is the CI system that it ran in, if any."""

    name: str
    case: str
    ci: str | None
    events: list[Event]


def load() -> dict[str, Run]:
    """Return the runs by name."""
    lines = resources.files(__package__).joinpath("events.jsonl").read_bytes()
    return {run.name: run for run in msgspec.json.Decoder(Run).decode_lines(lines)}
