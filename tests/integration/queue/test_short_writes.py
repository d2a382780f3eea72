"""Real short writes: a file that may not grow, and a file system that is really full. None passes for a whole write."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.support.small_disk import SIZES, Report
from tests.support.tools import require_tool, unavailable

FILL = [sys.executable, "-m", "tests.support.small_disk"]
IN_A_SMALL_FILE_SYSTEM = 'mount -t tmpfs -o size=320k tmpfs "$1" && exec "$0" -m tests.support.small_disk "$1"'
ROOT = Path(__file__).parents[3]

WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from agent.queue.filesystem import OsFilesystem
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
file = OsFilesystem().create(Path(sys.argv[1]))
try:
    file.pwrite(b"x" * 15_000, 0)
except OSError as error:
    print(error.errno, file.size())
"""


def report(command: Sequence[str]) -> Report:
    """Run the filling process, and return what it has to say."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return msgspec.json.decode(done.stdout, type=Report)


def test_a_write_that_was_cut_short_is_an_error_that_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout.split() == [str(errno.EFBIG), "10000"]


def test_files_that_may_not_grow_cost_no_event_that_fits_into_another(tmp_path: Path) -> None:
    found = report([*FILL, str(tmp_path / "queue"), "100000"])
    assert found.acked == found.found == list(range(len(SIZES)))
    assert (found.huge, found.again, found.dropped) == ("disk_full", None, {"disk_full": 1})


def test_a_full_file_system_sheds_by_name_keeps_what_it_acked_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    unshare = require_tool("unshare", "apt-get install util-linux")
    alone = [str(unshare), "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    may_mount = subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if may_mount.returncode != 0:
        unavailable(f"needs a file system of its own; run the tests where mount is allowed: {may_mount.stderr.strip()}")
    found = report([*alone, "sh", "-c", IN_A_SMALL_FILE_SYSTEM, sys.executable, str(tmp_path)])
    assert 20 < len(found.acked) < len(SIZES)
    assert found.found == found.acked
    assert found.refused == {"disk_full": len(SIZES) - len(found.acked)}
    assert (found.huge, found.again) == ("disk_full", None)
    assert found.dropped == {"disk_full": found.refused["disk_full"] + 1}
