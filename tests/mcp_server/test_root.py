"""The operator's folder: what names of models and data may mean, and what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.engine.api import WhetError
from whet.mcp_server.root import Root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A folder beside one of secrets; the process was started where both lie."""
    (tmp_path / "open" / "rows").mkdir(parents=True)
    (tmp_path / "secret" / "inner").mkdir(parents=True)
    (tmp_path / "secret" / "keys.jsonl").write_text('{"text": "secret"}\n')
    monkeypatch.chdir(tmp_path)
    return Root(tmp_path / "open")


def refused(root: Root, text: str) -> str:
    with pytest.raises(WhetError) as error:
        root.source(text)
    return error.value.code


def test_names_that_may_pass(root: Root) -> None:
    assert root.source("demo") == "demo"
    assert root.source("someone/a-model") == "someone/a-model"
    assert root.source("rows") == str(root.folder / "rows")
    assert root.source(str(root.folder / "rows")) == str(root.folder / "rows")


def test_a_link_that_stays_inside_may_pass(root: Root) -> None:
    (root.folder / "all.jsonl").write_text('{"text": "fine"}\n')
    (root.folder / "rows" / "all.jsonl").symlink_to(root.folder / "all.jsonl")
    assert root.source("rows") == str(root.folder / "rows")


@pytest.mark.parametrize("text", ["../secret/keys.jsonl", "rows/../../secret", "/etc", "~/.ssh"])
def test_paths_that_lead_out(root: Root, text: str) -> None:
    assert refused(root, text) == "path.outside"


@pytest.mark.parametrize("text", ["", "a\0b", "a\x1b[2Jb", "a" * 5000, f"a/{'b' * 300}\n"])
def test_paths_that_are_none(root: Root, text: str) -> None:
    assert refused(root, text) == "path.odd"


def test_links_that_lead_out(root: Root, tmp_path: Path) -> None:
    (root.folder / "link").symlink_to(tmp_path / "secret")
    assert refused(root, "link/keys.jsonl") == "path.outside"
    (root.folder / "rows" / "link.jsonl").symlink_to(tmp_path / "secret" / "keys.jsonl")
    assert refused(root, "rows") == "path.outside"


def test_a_folder_where_the_process_was_started_is_no_hub_id(root: Root) -> None:
    assert root.source("secret/inner") == str(root.folder / "secret" / "inner")
    assert root.source("secret/..") == str(root.folder)
