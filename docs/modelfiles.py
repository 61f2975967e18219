"""docs/modelfiles.md: which chat templates become a Modelfile, and why others do not. `make go-templates`.

    python -P docs/modelfiles.py             derive, render each by Go's own text/template, write the table
    python -P docs/modelfiles.py --check     derive, and fail if the table says anything else; needs no Go
    python -P docs/modelfiles.py FOLDER      the same as the first for other templates, printed only

Go is `go` on the PATH (Debian: apt install golang-go).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.engine.data.chat_templates import TEMPLATES, find
from whet.engine.data.chat_templates.renderer import Renderer, strip_generation_tags
from whet.engine.errors import WhetError
from whet.engine.export.go_chat import derive, trims
from whet.engine.export.ollama_chat import GoChat, NotExpressible, conversations, tags_of

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "tests" / "export" / "chat_shapes"
GO = ROOT / "tests" / "export" / "go_templates" / "main.go"
TABLE = ROOT / "docs" / "modelfiles.md"
BOS, EOS = "<s>", "</s>"

HEAD = """# Which chat templates become a Modelfile

Made by `make go-templates`; `make check` fails when it no longer holds. The TEMPLATE of a Modelfile is
derived from the Jinja template and rendered beside it (`engine/export/go_chat.py`) on conversations of one
to three questions, with and without a system message, and with thoughts where the template knows them. They
agree to the letter, or no Modelfile is written and the reason becomes a note of the export. An export
renders by whet's own reader of the subset of Go that it writes; for this table Go's text/template itself
({go}) rendered every conversation too.

What Ollama reads and what it gives a template was read in its source (`parser/parser.go` at 00dc3af,
`template/template.go` at 0097ef5, `thinking/template.go` at a27f605): quotes escape nothing, unprintable
characters vanish, system messages stay in `.Messages`; a template with `.Thinking` between two tags has
thoughts told apart from answers, and `.Think` is true unless the person switched it off. Ollama itself was
not run.
"""


@dataclass
class Row:
    """One template's outcome, and its conversations: what Go gets (``asked``), what it should write."""

    name: str
    chat: GoChat | None = None
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)


def outcome(name: str, source: str) -> Row:
    """Derive a template's Go form and prepare the comparison."""
    renderer = Renderer(source, BOS, EOS)
    try:
        chat = derive(renderer)
    except NotExpressible as reason:
        return Row(name, reason=str(reason))
    row = Row(name, chat)
    row.notes += ["its default system message as SYSTEM"] if chat.system else []
    row.notes += ["no system messages"] if not chat.knows_system else []
    row.notes += ["trims messages, which Ollama does not"] if trims(renderer) else []
    row.notes += ["thoughts apart from answers"] if tags_of(chat.template) else []
    for talk in conversations(renderer, chat):
        row.asked.append({"template": chat.template, "data": talk.data(chat)})
        row.wanted.append(talk.wanted(renderer))
    return row


def shipped() -> Iterator[Row]:
    """whet's own templates."""
    for name in sorted(TEMPLATES):
        yield outcome(name, strip_generation_tags(find(name).source))


def shapes(folder: Path) -> Iterator[Row]:
    """Templates in files, a final newline of the file left out."""
    for path in sorted(folder.glob("*.jinja")):
        yield outcome(path.stem, path.read_text(encoding="utf-8").removesuffix("\n"))


def render_with_go(rows: Sequence[Row]) -> str:
    """Compare each row's conversations as Go renders them; its version. Raises SystemExit on a difference."""
    asked = [one for row in rows for one in row.asked]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "render"
        subprocess.run(["go", "build", "-o", str(program), str(GO)], check=True)
        lines = "".join(json.dumps(one) + "\n" for one in asked)
        done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=True)
    version, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [(row.name, text) for row in rows for text in row.wanted]
    for (name, text), answer in zip(wanted, answers, strict=True):
        if answer != {"text": text}:
            raise SystemExit(f"{name}: Go gives {answer}, the chat template {text!r}")
    return str(version["version"])


def table(title: str, rows: Iterable[Row]) -> str:
    """A section of the document."""
    lines = [f"## {title}", "", "| template | Modelfile | conversations | notes, or why there is none |"]
    lines.append("|---|---|---:|---|")
    for row in rows:
        words = "; ".join(row.notes) if row.chat else row.reason
        made = f"yes | {len(row.wanted)}" if row.chat else "no |"
        lines.append(f"| {row.name} | {made} | {words.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def document(go: str, own: Sequence[Row], others: Sequence[Row]) -> str:
    """The whole file."""
    return (
        "\n\n".join(
            [
                HEAD.format(go=go).strip(),
                table("Templates that whet ships", own),
                table("Shapes of other families, and what cannot be written", others),
            ]
        )
        + "\n"
    )


def main(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] != "--check":
        rows = list(shapes(Path(arguments[0])))
        go = render_with_go(rows)
        print(table(f"{arguments[0]}, by {go}", rows))
        return
    own, others = list(shipped()), list(shapes(SHAPES))
    written = TABLE.read_text(encoding="utf-8") if TABLE.is_file() else ""
    if arguments:
        rendered_by = re.search(r"\((go\S+)\)", written)
        if rendered_by is None or document(rendered_by[1], own, others) != written:
            raise SystemExit("docs/modelfiles.md is not what templates give today: run `make go-templates`.")
        return
    try:
        go = render_with_go([*own, *others])
    except FileNotFoundError as error:
        raise WhetError("go.missing", "`go` is not installed.", "apt install golang-go") from error
    TABLE.write_text(document(go, own, others), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
