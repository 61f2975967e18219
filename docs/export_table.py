"""The tables of docs/export.md and docs/proof.md from what benchmarks/export_proof.py measured.

python -P docs/export_table.py            writes them between their markers
python -P docs/export_table.py --check    only says whether they are today's
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "export-proof.json"
Row = dict[str, Any]


def formats(part: dict[str, Any]) -> str:
    """Family by format: divergence, first choices, ids, verdict."""
    lines = [
        _measured(part),
        "",
        "| family | format | KL, nat | top-1 | ids | verdict |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['family']} | {row['format']} | {_number(row['kl'])} | {_share(row['same_top'])} | "
        f"{_of(row['ids'])} | {_verdict(row)} |"
        for row in part["rows"]
    ]
    return "\n".join(lines)


def embeddings(part: dict[str, Any]) -> str:
    """Embedding models by type: cosines, neighbours, ids, verdict."""
    lines = [
        _measured(part),
        "",
        "| model | format | cosine, mean | least | gates | same neighbour | ids | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        mean, least = row["cosine"]
        lines.append(
            f"| {row['family']} | {row['format']} | {mean:.6f} | {least:.6f} | {row['gate'][0]}, "
            f"{row['gate'][1]} | {_of(row['neighbours'])} | {_of(row['ids'])} | {row['verdict']} |"
        )
    return "\n".join(lines)


def types(part: dict[str, Any]) -> str:
    """Gates beside what healthy files measure: the trained demo, the small learnt model, random families."""
    families = json.loads(RESULTS.read_text(encoding="utf-8"))["formats"]["rows"]
    lines = [
        _measured(part),
        "",
        "| type | gate, nat | demo | of gate | learnt | random families | of gate | tensors, of gate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row["type"] for row in part["rows"]):
        rows = [row for row in part["rows"] if row["type"] == kind]
        by_model = {row["model"]: row["kl"] for row in rows}
        random = [row["kl"] for row in families if row["format"] == f"GGUF {kind}"]
        gate = rows[0]["gate"]
        spread = f"{_number(min(random))} to {_number(max(random))}" if random else ""
        lines.append(
            f"| {kind} | {gate:g} | {_number(by_model.get('demo'))} | {_times(by_model.get('demo'), gate)} | "
            f"{_number(by_model.get('learnt'))} | {spread} | {_times(max(random, default=None), gate)} | "
            f"{_tensors(rows)} |"
        )
    return "\n".join(lines)


def faults(part: dict[str, Any]) -> str:
    """Each fault: the step that names it, on how many models, and how far beyond the gate at least."""
    lines = [
        _measured(part),
        "",
        "| fault | caught by | models | caught | at least, of the gate |",
        "|---|---|---|---|---|",
    ]
    for name, step in dict.fromkeys((row["name"], row["caught_by"]) for row in part["rows"]):
        rows = [row for row in part["rows"] if (row["name"], row["caught_by"]) == (name, step)]
        caught = [row for row in rows if step in row["failed"]]
        times = [row["times_gate"] for row in rows if row["times_gate"] is not None]
        models = ", ".join(dict.fromkeys(row["model"] for row in rows)) if len(rows) < 4 else str(len(rows))
        least = f"{min(times):,.1f}" if times else ""
        lines.append(f"| {name} | {step} | {models} | {len(caught)} of {len(rows)} | {least} |")
    all_caught = sum(row["caught_by"] in row["failed"] for row in part["rows"])
    lines += [
        "",
        f"{all_caught} of {len(part['rows'])} faults were caught by the step that is there for them.",
    ]
    return "\n".join(lines)


def greedy(part: dict[str, Any]) -> str:
    """The demo's answers in llama-cpp-python beside those of the tuned model."""
    lines = [
        _measured(part),
        "",
        "| file | held-out questions | the same answer, word for word |",
        "|---|---|---|",
    ]
    lines += [f"| {row['file']} | {row['prompts']} | {row['same']} |" for row in part["rows"]]
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "export.md": {"formats": formats, "embeddings": embeddings, "greedy": greedy},
    "proof.md": {"types": types, "faults": faults},
}


def _measured(part: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in part["versions"].items())
    return f"Measured {part['date']} on {part['machine']}: {versions}."


def _number(value: float | None) -> str:
    return "" if value is None else "< 1e-9" if abs(value) < 1e-9 else f"{value:.1e}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _of(pair: Iterable[int] | None) -> str:
    return "" if pair is None else " of ".join(f"{one:,}" for one in pair)


def _times(value: float | None, gate: float) -> str:
    return "" if value is None else f"{value / gate:.2f}"


def _verdict(row: Row) -> str:
    """With the steps that warned."""
    return f"{row['verdict']} ({', '.join(row['warned'])})" if row["warned"] else str(row["verdict"])


def _tensors(rows: list[Row]) -> str:
    """The healthy tensor, or block of one, that comes nearest to its gate."""
    sys.path[:0] = [str(ROOT / "src")]
    from whet.engine.export.smoke_file_judge import gates_for

    shares = [
        error / gate
        for row in rows
        for kind, errors in row["tensors"].items()
        for error, gate in zip(errors, gates_for(kind), strict=True)
    ]
    return f"{max(shares):.2f}" if shares else ""


def page(path: Path) -> str:
    """A page with each of its tables between the markers."""
    text, results = path.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, table in PAGES[path.name].items():
        begin, end = f"<!-- {name}: made by make export-table -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{path} lacks the markers of the table {name!r}.")
        text = f"{before}{begin}\n{table(results[name])}\n\n{end}{after}"
    return text


def main() -> int:
    """Write the pages; with --check, only say whether they are today's."""
    different = 0
    for name in PAGES:
        path = ROOT / "docs" / name
        made = page(path)
        if "--check" not in sys.argv:
            path.write_text(made, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != made:
            print(f"docs/{name} is not what was measured: python -P docs/export_table.py", file=sys.stderr)
            different = 1
    return different


if __name__ == "__main__":
    sys.exit(main())
