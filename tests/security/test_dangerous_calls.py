"""Calls that would turn data into code are nowhere in whet: the source itself is searched."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
    "torch.compile": "runs what lies in /tmp/torchinductor_USER, which another user can have made",
    "csv.writer": "a spreadsheet runs rows that begin with =",
    "csv.DictWriter": "a spreadsheet runs rows that begin with =",
    "shutil.unpack_archive": "writes where an archive says",
    "torch.distributed.broadcast_object_list": "unpickles what a socket sends",
    "torch.distributed.all_gather_object": "unpickles what a socket sends",
    "torch.distributed.gather_object": "unpickles what a socket sends",
    "torch.distributed.scatter_object_list": "unpickles what a socket sends",
}
UNPICKLES = "engine/data/batch_process.py"
"""Over a pipe of which both ends are ours."""
EXECUTES = "engine/rewards/sandbox/harness.py"
"""Inside of the sandbox, the program it is for."""
OF_SCRIPTS = ("engine/python_api/fast_model.py", "engine/python_api/trl_classes.py")
"""What a script asks for by name is passed on as it is."""


def files() -> Iterator[tuple[str, ast.Module]]:
    root = SOURCE / "whet"
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            yield str(path.relative_to(root)), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name and its attributes; of anything else the attributes alone, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def plain(value: ast.expr) -> str:
    return repr(value.value) if isinstance(value, ast.Constant) else dotted(value)


@dataclass(frozen=True)
class Call:
    file: str
    name: str
    """Dotted, imports resolved: ``np.load`` is ``numpy.load``."""
    words: dict[str, str]
    """Keyword -> its value, where that is a name or a constant; ``**options`` under ``**``."""


def calls(file: str, tree: ast.Module) -> Iterator[Call]:
    names: dict[str, str] = {}
    found: list[tuple[str, ast.Call]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and (name := dotted(node.func)):
            found.append((name, node))
    for name, call in found:
        first, dot, rest = name.partition(".")
        words = {one.arg or "**": plain(one.value) for one in call.keywords}
        yield Call(file, names.get(first, first) + dot + rest, words)


@pytest.fixture(scope="module")
def found() -> list[Call]:
    """Every call in whet whose name says what it is."""
    return [call for file, tree in files() for call in calls(file, tree)]


def test_no_forbidden_call(found: list[Call]) -> None:
    assert len(found) > 10_000
    assert [(one.file, one.name, FORBIDDEN[one.name]) for one in found if one.name in FORBIDDEN] == []
    assert {one.file for one in found if one.name in ("exec", "builtins.exec")} == {EXECUTES}


def test_no_pickle_is_read(found: list[Call]) -> None:
    readers = ("pickle.load", "pickle.loads", "pickle.Unpickler")
    assert {one.file for one in found if one.name in readers} == {UNPICKLES}
    loads = [one for one in found if one.name == "torch.load"]
    assert loads and all(one.words.get("weights_only") == "True" for one in loads)
    assert all(one.words.get("allow_pickle", "False") == "False" for one in found if one.name == "numpy.load")


def test_no_shell(found: list[Call]) -> None:
    started = [one for one in found if one.name.startswith("subprocess.")]
    assert started and all(one.words.get("shell", "False") == "False" for one in started)


def test_nothing_is_trusted_or_fetched_unasked(found: list[Call]) -> None:
    """transformers' loaders are told that the files are here, in the call or in the options it unpacks."""
    assert [one for one in found if one.words.get("trust_remote_code") == "True"] == []
    loaders = [one for one in found if one.name.endswith(".from_pretrained") and one.file not in OF_SCRIPTS]
    told = [one for one in loaders if {"local_files_only", "**"} & set(one.words)]
    others = {one.name for one in loaders if one not in told}
    assert len(told) > 20 and others == {"peft.PeftModel.from_pretrained", "snac.SNAC.from_pretrained"}


def test_no_place_in_a_shared_folder_has_a_name_of_its_own() -> None:
    shared = re.compile(r"""["']/(?:tmp|var/tmp|dev/shm)/""")
    texts = {
        path: path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in (SOURCE / "whet" / folder).rglob("*.py")
    }
    assert len(texts) > 400 and [path.name for path, text in texts.items() if shared.search(text)] == []
