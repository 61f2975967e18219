"""The trees of folders (README) and of all files (docs/files.md), from each file's own first sentence.

`make tree` writes them; `--check` says whether they are today's.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "kernels", "tui", "mcp_server", "tests", "benchmarks", "docs")
OTHERS = {
    "pyproject.toml": "package map, dependencies, settings of ruff, mypy, pytest and import-linter",
    "Makefile": "set-up, demo, tests",
    "constraints": "exact versions to install, for CPU and for CUDA",
    "src/whet": "four links to the folders below, so that they import as whet.*",
}
FOLDER_WORDS = {
    "kernels": "Triton kernels, one file each, with reference and KernelSpec",
    "tests": "a folder for each part, and support/ with tiny models, stand-ins and drivers",
    "benchmarks": "measurements, one script each; results/ holds what they said, with date and machine",
    "docs": "one page a subject, and the scripts that make tables and pictures",
}
"""Folders without an __init__.py that says it."""
OPENED = ("engine",)
"""Folders whose own files the README lists."""
CLOSED = ("tests", "benchmarks", "docs")
"""Folders that are one line in the README."""
WIDTH = 40
LONGEST, ENOUGH = 76, 30  # characters of a line's words
BEGIN, END = "<!-- tree: made by `make tree` -->\n", "<!-- end of tree -->"


def tree(everything: bool) -> str:
    """The committed Python files by folder: all of them, or folders and the engine's own files."""
    command = ["git", "ls-files", *FOLDERS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = sorted(Path(name) for name in listed.splitlines() if name.endswith(".py"))
    lines = [f"{name:{WIDTH}}{words}" for name, words in OTHERS.items()]
    shown: set[Path] = set()
    for file in sorted(files, key=lambda file: [*((1, part) for part in file.parts[:-1]), (0, file.name)]):
        for depth in range(1, len(file.parts)):
            folder = Path(*file.parts[:depth])
            if folder in shown or not (everything or depth == 1 or folder.parts[0] not in CLOSED):
                continue
            shown.add(folder)
            words = FOLDER_WORDS.get(str(folder)) or _summary(ROOT / folder / "__init__.py")
            lines.append(_line(depth - 1, f"{folder.name}/", words))
        listed_here = everything or str(file.parent) in OPENED
        if listed_here and file.name not in ("__init__.py", "conftest.py"):
            lines.append(_line(len(file.parts) - 1, file.name, _summary(ROOT / file)))
    return "\n".join(lines)


def _line(depth: int, name: str, words: str) -> str:
    return f"{'  ' * depth + name:{WIDTH - 1}} {words}".rstrip()


def _summary(file: Path) -> str:
    """The first sentence of a module's docstring, or its first clause where that says enough."""
    if not file.exists():
        return ""
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    sentence = " ".join(text.split()).split(". ")[0]
    clause = next((m.start() for m in re.finditer(r"[:;,] ", sentence) if m.start() >= ENOUGH), None)
    if len(sentence) > LONGEST and clause is not None:
        sentence = sentence[:clause]
    return sentence.rstrip(".:;")


def made() -> dict[Path, str]:
    """Today's files: the README with its tree between the markers, and the page of all files."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    words = "One line a file, from the file itself; `make tree` writes this page."
    return {
        readme: f"{before}{BEGIN}```\n{tree(everything=False)}\n```\n{END}{after}",
        ROOT / "docs" / "files.md": f"# All files\n\n{words}\n\n```\n{tree(everything=True)}\n```\n",
    }


def main() -> int:
    """Write both; with --check, only say whether they are today's."""
    if "--check" in sys.argv:
        stale = [p for p, text in made().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not today's: make tree")
        return len(stale)
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
