"""The project's Markdown documents, as far as tests read them: links, anchors, code, tables."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


def documents() -> list[Path]:
    """Return every Markdown file of the project: none of packages, and of hidden directories those of .github alone."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(path for path in found if not any(map(_is_foreign, path.parts)))


def _is_foreign(part: str) -> bool:
    return part == "node_modules" or (part[0] == "." and part != ".github")


@cache
def read(name: str) -> str:
    """Return the text of a document, named from the root on."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Return the text without its code blocks."""
    return _FENCED.sub("", text)


def code(text: str) -> list[str]:
    """Return what stands in backticks, and each line of a code block."""
    blocks = [line for block in _FENCED.findall(text) for line in block.splitlines()[1:-1]]
    return blocks + re.findall(r"`([^`]+)`", prose(text))


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks in that language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Return the targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text)))


def anchors(text: str) -> set[str]:
    """Return the names that links to headings have, by the rule of the usual hosts."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for _, title in _HEADING.findall(prose(text)))
    return {title.replace(" ", "-") for title in titles}


def section(text: str, title: str) -> str:
    """Return what is below a heading, up to the next one of its level or a higher one."""
    _, found, rest = text.partition(f" {title}\n")
    assert found, f"there is no heading {title!r}"
    level = re.findall(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)[0]
    code = r"^```.*?^```$"  # in which # begins a comment
    headings = re.sub(code, lambda block: block[0].replace("\n#", "\n "), rest, flags=re.MULTILINE | re.DOTALL)
    end = re.search(rf"^#{{1,{len(level)}}} ", headings, re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of all tables, without headers and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {index for index, line in enumerate(lines) if set(line) <= set("|-: ")}
    kept = [line for index, line in enumerate(lines) if index not in rules and index + 1 not in rules]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in kept]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return what a Python file defines: `name`, `Class`, and `Class.member` for methods and attributes."""
    return frozenset(_defined(ast.parse(path.read_bytes()).body))


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name, body=members):
                yield name
                yield from (f"{name}.{member}" for member in _defined(members))
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case _:
                pass
