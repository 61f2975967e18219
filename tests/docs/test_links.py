"""The documents' links lead somewhere: to a file of the repository, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/deploy/*.md")])
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """As GitHub names them: headings in small letters with dashes, and what is named by hand."""
    text = page.read_text(encoding="utf-8")
    headings = (re.sub(r"[^\w\- ]", "", one.lower()) for one in re.findall(r"^#+ (.*)$", text, re.M))
    return {one.replace(" ", "-") for one in headings} | set(re.findall(r'<a id="([^"]+)">', text))


def links(page: Path) -> list[tuple[Path, str]]:
    """File and anchor of each link to this repository."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    found = [one.partition("#") for one in LINK.findall(text) if not re.match(r"\w+:", one)]
    return [(page.parent / name if name else page, anchor) for name, _, anchor in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [str(target) for target, _ in links(page) if not target.exists()] == []
    pages = [(target, anchor) for target, anchor in links(page) if anchor and target.suffix == ".md"]
    assert [(target.name, anchor) for target, anchor in pages if anchor not in anchors(target)] == []


def test_links_are_found() -> None:
    assert sum(len(links(page)) for page in PAGES) > 50
