"""The README's tree, one line a file, from each file's own first sentence: `make tree` writes it there."""

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
WIDTH = 40
LONGEST, ENOUGH = 76, 30  # characters of a line's words
BEGIN, END = "<!-- tree: made by `make tree` -->\n", "<!-- end of tree -->"


def tree() -> str:
    """The tree of the committed Python files, folder by folder."""
    command = ["git", "ls-files", *FOLDERS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = sorted(Path(name) for name in listed.splitlines() if name.endswith(".py"))
    lines = [f"{name:{WIDTH}}{words}" for name, words in OTHERS.items()]
    shown: set[Path] = set()
    for file in sorted(files, key=lambda file: [*((1, part) for part in file.parts[:-1]), (0, file.name)]):
        for depth in range(1, len(file.parts)):
            folder = Path(*file.parts[:depth])
            if folder not in shown:
                shown.add(folder)
                lines.append(_line(depth - 1, f"{folder.name}/", _summary(ROOT / folder / "__init__.py")))
        if file.name not in ("__init__.py", "conftest.py"):
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


def readme_with_tree(readme: str) -> str:
    """The README with today's tree between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}```\n{tree()}\n```\n{END}{after}"


def main() -> int:
    """Write the tree into the README; with --check, only say whether it is today's."""
    path = ROOT / "README.md"
    now = path.read_text(encoding="utf-8")
    made = readme_with_tree(now)
    if "--check" in sys.argv:
        return int(now != made)
    path.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
