"""agent/DESIGN.md: the files, classes and functions that it names exist, and the layers are those that are checked."""

import re
import tomllib

from tests.support.documents import ROOT, code, names_in, read, section

DESIGN = read("agent/DESIGN.md")
NAMED = sorted({span for span in code(DESIGN) if re.fullmatch(r"(?:agent|tests)/[\w./-]+(?:::[\w.]+)?", span)})


def test_every_file_and_name_exists() -> None:
    assert len(NAMED) > 50
    paths = {name: ROOT / name.partition("::")[0] for name in NAMED}
    assert not [name for name, path in paths.items() if not path.exists()]
    assert not [name for name, path in paths.items() if "::" in name and name.partition("::")[2] not in names_in(path)]


def test_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    checked = next(each["layers"] for each in contracts if each["type"] == "layers")
    shown = section(DESIGN, "Who may import whom").partition("```\n")[2].partition("\n```")[0].splitlines()
    assert shown == [layer.replace("agent.", "") for layer in checked]
