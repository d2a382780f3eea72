"""The process that fuzzes one target: atheris, with the agent's modules measured for coverage.

    python -m tests.fuzz.engine TARGET FINDINGS CORPUS… LIBFUZZER-OPTIONS…

It must be a process of its own: modules are measured as they are imported, and libFuzzer ends the process when it is done.
"""

import hashlib
import sys
from pathlib import Path

import atheris


def main(name: str, findings: Path, arguments: list[str]) -> None:
    """Fuzz until libFuzzer's options say stop; never returns. What a target fails on is written into `findings`."""
    with atheris.instrument_imports(include=["agent"]):
        from tests.fuzz.targets import TARGETS

    def check(data: bytes) -> None:
        try:
            TARGETS[name].check(data)
        except BaseException:  # libFuzzer writes most of them, but not all
            digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            (findings / f"crash-{digest}").write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
