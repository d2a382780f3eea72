"""The real `artifacts-agent web` as a process, on a free port of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.support.command import COMMAND, environment
from tests.support.process import Child, running
from tests.support.waiting import HUNG_AFTER, eventually


class Web(NamedTuple):
    """A page that is served."""

    process: Child
    url: str

    def get(self, query: str = "", **headers: str) -> httpx.Response:
        """Ask for the page."""
        return httpx.get(f"{self.url}{query}", headers=headers, timeout=HUNG_AFTER)

    def wait_for(self, *said: str, query: str = "") -> str:
        """Return the page as soon as all of this is on it."""
        return eventually(lambda: self.get(query).text, lambda text: all(each in text for each in said))


@contextmanager
def served(config: Path, *options: str | Path) -> Iterator[Web]:
    """Serve the page while the block lasts."""
    command = [*COMMAND, "web", "--listen", "127.0.0.1:0", "--config", config, *options]
    with running(command, environment()) as child:
        yield Web(child, child.wait_for_line(r"The page is at (http://\S+/)")[1])


def configured(directory: Path) -> Path:
    """Write the configuration of an agent that does not run, with an empty queue; return its file."""
    (directory / "queue" / "default").mkdir(parents=True)
    sockets = "".join(f'{name} = "{directory / name}.sock"\n' for name in ("stream", "datagram", "control"))
    config = directory / "config.toml"
    config.write_text(f'[listen]\n{sockets}[queue]\ndirectory = "{directory / "queue"}"\n')
    return config
