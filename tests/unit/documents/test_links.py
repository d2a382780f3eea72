"""Every link in every document leads somewhere, and the README stays short."""

import pytest

from tests.support.documents import ROOT, anchors, documents, links, read

README_LINES = 150
DOCUMENTS = [str(path) for path in documents()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name: str) -> None:
    broken = [link for link in links(read(name)) if "://" not in link and not _leads_somewhere(name, link)]
    assert not broken


def _leads_somewhere(name: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
    return target.exists() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8")))


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) < README_LINES


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "README.md"])
def test_every_document_can_be_found_from_the_readme(name: str) -> None:
    seen, waiting = set[str](), ["README.md"]
    while waiting:
        document = waiting.pop()
        if document not in seen:
            seen.add(document)
            waiting += [found for link in links(read(document)) if (found := _document(document, link)) is not None]
    assert name in seen


def _document(name: str, link: str) -> str | None:
    if "://" in link:
        return None
    target = ((ROOT / name).parent / link.partition("#")[0]).resolve()
    return str(target.relative_to(ROOT)) if target.suffix == ".md" and target.is_relative_to(ROOT) else None


@pytest.mark.parametrize("marker", ["demo-command", "test-command"])
def test_the_readme_marks_its_commands(marker: str) -> None:
    assert f"\n<!-- {marker} -->\n```sh\npython3 -m venv " in read("README.md")
