"""The process that fuzzes one target: atheris, with the agent's modules measured for coverage.

    python -m tests.fuzz.engine TARGET CORPUS… LIBFUZZER-OPTIONS…

It must be a process of its own: modules are measured as they are imported, and libFuzzer ends the process when it is done.
"""

import sys

import atheris


def main(name: str, arguments: list[str]) -> None:
    """Fuzz until libFuzzer's options say stop; never returns."""
    with atheris.instrument_imports(include=["agent"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
