"""Which jobs' events have come to a destination lately, by label: in memory, as who asks is a job that goes on now."""

from collections import OrderedDict

MOST = 1000
"""How many labels are remembered. Who sends more of them makes other jobs' flushes wait for all destinations, and no worse."""


class RecentJobs:
    """The labels of which events came last."""

    def __init__(self) -> None:
        self._labels: OrderedDict[str, None] = OrderedDict()
        self._newest: str | None = None

    def note(self, label: str | None) -> None:
        """Remember that events with this label have come; None is no label."""
        if label is None or label == self._newest:
            return
        self._labels[label] = None
        self._labels.move_to_end(label)
        self._newest = label
        if len(self._labels) > MOST:
            self._labels.popitem(last=False)

    def __contains__(self, label: str) -> bool:
        return label in self._labels
