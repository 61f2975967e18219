"""Calls that would turn data into code are nowhere in whet: the source itself is searched."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_runs import SOURCE

FOLDERS = ("engine", "kernels", "mcp_server", "tui")
FORBIDDEN = {
    "os.system": "a shell",
    "os.popen": "a shell",
    "yaml.load": "constructs objects; yaml.safe_load does not",
    "yaml.full_load": "constructs objects",
    "yaml.unsafe_load": "constructs objects",
    "yaml.load_all": "constructs objects",
    "eval": "runs text",
    "joblib.load": "unpickles",
    "tempfile.mktemp": "a name that another user can take",
    "shutil.unpack_archive": "writes where an archive says",
    "torch.distributed.broadcast_object_list": "unpickles what a socket sends",
    "torch.distributed.all_gather_object": "unpickles what a socket sends",
    "torch.distributed.gather_object": "unpickles what a socket sends",
    "torch.distributed.scatter_object_list": "unpickles what a socket sends",
}
ALLOWED = {
    ("engine/data/batch_process.py", "pickle"): "both ends are ours, over a pipe",
    ("engine/rewards/sandbox/harness.py", "exec"): "the program that the sandbox is for, inside of it",
}
"""Where a dangerous call is the point, and why it is safe there."""


def files() -> Iterator[tuple[str, ast.Module]]:
    root = SOURCE / "whet"
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            yield str(path.relative_to(root)), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Each call with its whole dotted name, imports resolved: ``np.load`` is ``numpy.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield names.get(first, first) + dot + rest, node


def keywords(call: ast.Call) -> dict[str, str]:
    return {one.arg: ast.unparse(one.value) for one in call.keywords if one.arg}


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str, dict[str, str]]]:
    """(file, dotted name, keywords) of every call in whet."""
    return [(file, name, keywords(call)) for file, tree in files() for name, call in calls(tree)]


def test_no_forbidden_call(found: list[tuple[str, str, dict[str, str]]]) -> None:
    assert len(found) > 10_000
    assert [(file, name, FORBIDDEN[name]) for file, name, _ in found if name in FORBIDDEN] == []
    assert [(file, name) for file, name, _ in found if name == "exec"] == [
        (file, name) for file, name in ALLOWED if name == "exec"
    ]


def test_no_pickle_is_read(found: list[tuple[str, str, dict[str, str]]]) -> None:
    unpickled = {file for file, name, _ in found if name.startswith(("pickle.load", "pickle.Unpickler"))}
    assert unpickled == {file for file, name in ALLOWED if name == "pickle"}
    loads = [(file, words) for file, name, words in found if name == "torch.load"]
    assert loads and all(words.get("weights_only") == "True" for _, words in loads)
    arrays = [(file, words) for file, name, words in found if name == "numpy.load"]
    assert all(words.get("allow_pickle", "False") == "False" for _, words in arrays)


def test_no_shell(found: list[tuple[str, str, dict[str, str]]]) -> None:
    started = [(file, words) for file, name, words in found if name.startswith("subprocess.")]
    assert started and all(words.get("shell", "False") == "False" for _, words in started)


def test_weights_are_asked_for_as_safetensors(found: list[tuple[str, str, dict[str, str]]]) -> None:
    """``from_pretrained`` of a model with weights names it, or gets its options from where it is named."""
    trusted = [(file, words) for file, _, words in found if words.get("trust_remote_code") == "True"]
    assert trusted == []


def test_sources_hold_no_long_lived_temporary_names() -> None:
    root = SOURCE / "whet"
    literal = [
        (str(path.relative_to(root)), line)
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if '"/tmp' in line or "'/tmp" in line
    ]
    assert [file for file, _ in literal] == [], literal


def test_the_source_is_found() -> None:
    assert (SOURCE / "whet" / "engine" / "api.py").is_file() and Path(__file__).parent.name == "security"
