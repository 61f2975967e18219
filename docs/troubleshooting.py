"""docs/troubleshooting.md from the checks' catalogue: `make troubleshooting`; `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from whet.engine.checks.catalogue import CATALOGUE, Entry  # noqa: E402

PAGE = ROOT / "docs" / "troubleshooting.md"
PHASES = {
    "E": ("Environment", "packages, hardware, flags, network"),
    "D": ("Data and template", "seen before any weight is loaded"),
    "L": ("Load", "weights, tokenizer, adapter, memory"),
    "T": ("Training", "while it runs"),
    "X": ("Export", "merged weights, GGUF, Modelfile"),
}
HEAD = """# Troubleshooting

Made by `make troubleshooting` from the checks' own catalogue; edit that, not this page.

Every finding has an id, a severity, evidence and a fix. `whet plan` shows those seen before a run, `whet
doctor` those of the machine, `whet show RUN` all of a run with what was seen while it ran and exported. An
**error** blocks the start unless the recipe accepts its id (`accept: [D16]`); a **warning** asks you to
act; a **note** informs. `whet explain D01` prints an entry, and `whet fix RECIPE` applies the patches of
what was found to a copy of the recipe, shows the difference and plans it again. How many broken set-ups
of each id are caught, and that healthy ones raise nothing: [faults](faults.md).
"""

# What people of other trainers look for -> the id that catches it, and whet's way.
ELSEWHERE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "The loss is exactly 0",
        ("D01", "D02"),
        "No token is supervised: in Unsloth's scripts the strings given to `train_on_responses_only` are not "
        "those of the template. whet takes the assistant's spans from the template itself and counts the "
        "supervised tokens of every row before training.",
    ),
    (
        "Gibberish after the GGUF export",
        ("X03", "X05", "D10"),
        "Another chat template at inference, or BOS twice. Each GGUF is proven by token ids against the "
        "trained model, its Modelfile is derived from the template, and a failed proof blocks the upload.",
    ),
    (
        "CUDA error: device-side assert triggered",
        ("L02", "L03"),
        "Mostly a token id beyond the embedding, found on the CPU before the start. To rule the kernels "
        "out, `WHET_KERNELS=reference` runs their plain-torch references; no compile or generation flag is "
        "needed.",
    ),
    (
        "Out of memory in evaluation",
        ("T08",),
        "On the fast path held-out loss needs no full logits. Off it the plan holds a held-out batch "
        "against the device, with `eval.batch_size` 2 by default; scripts that compute metrics are told of "
        "full evaluation in 16 bits, a batch of 2 and an accumulation of 4 before the evaluation starts.",
    ),
    (
        "Out of memory in training, at once or at step N",
        ("L11",),
        "The peak of a step with the longest row of the data is estimated before the start, and settings "
        "that fit are proposed as patches; memory that runs out all the same becomes the same finding.",
    ),
    (
        "Out of memory while saving",
        ("X02",),
        "There is no memory share to lower: merging streams tensor by tensor and shard by shard. Space on "
        "each disk is added up before training.",
    ),
    (
        "A download stalls at 90 to 95 per cent",
        ("E03",),
        "Downloads are watched: one that brings no byte for 90 seconds is begun again over plain HTTP with "
        "one worker, and finished files are kept. `HF_HUB_DISABLE_XET=1` takes that way from the start.",
    ),
    (
        "Some weights were not initialized from the model checkpoint",
        ("E08", "E01"),
        "The tensors that are missing or left over are named: versions outside of the tested range, or a "
        "checkpoint of another class.",
    ),
    (
        "The first five minutes are slow",
        (
            "E09",
            "E04",
        ),
        "Nothing goes through `torch.compile`; Triton compiles whet's kernels once for each GPU and version "
        "and keeps them. The plan says when that is still to come, and `whet doctor --kernels` does it "
        "beforehand.",
    ),
    (
        "Gemma and others on GPUs that know only fp16",
        (
            "L05",
            "L06",
        ),
        "Families that leave fp16's range are known, and one row is tried through the loaded model; whether "
        "a GPU has bf16 is asked of its capability, not of a library.",
    ),
    (
        "bitsandbytes or xformers do not fit the rest",
        ("E02", "E01"),
        "xformers is not used. bitsandbytes is loaded in a process of its own, and the library it wants is "
        "named with the command that installs it; exact pins are in `constraints/`.",
    ),
    (
        "A Colab notebook complains about its locale (UTF-8)",
        ("E10",),
        "The preferred encoding is looked at, and the line for the environment is given.",
    ),
    (
        "Training runs on but the adapter learns nothing",
        ("L09", "T07"),
        "Target names that match no layer are counted before the start; gradients are looked at after one "
        "step.",
    ),
    (
        "Answers never stop, or run into the next turn",
        ("D07", "D08", "X05"),
        "The end token must be supervised, known to generation and a stop of the Modelfile; all three are "
        "checked.",
    ),
    (
        "An extra BOS token",
        ("D05", "D06", "X03"),
        "Counted in the ids that training sees, and again in those that llama.cpp makes.",
    ),
    (
        "Too little data",
        ("D16",),
        "Fewer than 100 rows is an error to accept by name, fewer than 1,000 a note.",
    ),
    (
        "The reward stays flat in reinforcement learning",
        ("T06", "D16"),
        "Size of data and model when the run is planned; groups whose answers all score the same, and "
        "answers cut off, while it runs; a reward function that fails ends the run by name.",
    ),
    (
        "The export fails after hours: no llama.cpp, no converter",
        ("X04",),
        "Tried before training, with this model's own tokenizer; nothing is cloned or built at export.",
    ),
    (
        "Flags of Unsloth in the environment",
        ("E12",),
        "`whet doctor --env` names each one that is set and what whet does instead; none has to be set "
        "before an import.",
    ),
)


def page() -> str:
    """The whole page."""
    parts = [HEAD, _contents()]
    for letter, (name, about) in PHASES.items():
        entries = [entry for entry in CATALOGUE.values() if entry.id[0] == letter]
        if entries:
            parts.append(f"## {name}\n\n{about[0].upper()}{about[1:]}.")
            parts += [_entry(entry) for entry in sorted(entries, key=lambda entry: entry.id)]
    parts.append(_elsewhere())
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _contents() -> str:
    rows = [
        f"| [{entry.id}](#{entry.id.lower()}) | {entry.title} |"
        for letter in PHASES
        for entry in sorted(CATALOGUE.values(), key=lambda entry: entry.id)
        if entry.id[0] == letter
    ]
    return "\n".join(["| id | what people see |", "|---|---|", *rows])


def _entry(entry: Entry) -> str:
    awaits = [f"*Comes with whet's {entry.awaits}.*"] if entry.awaits else []
    return "\n\n".join(
        [
            f'<a id="{entry.id.lower()}"></a>\n\n### {entry.id}: {entry.title}',
            *awaits,
            f"**Symptom.** {entry.symptom}",
            f"**How whet sees it.** {entry.seen}",
            f"**Why.** {entry.why}",
            f"**What helps.** {entry.fix}",
        ]
    )


def _elsewhere() -> str:
    lines = [
        "## Coming from another trainer",
        "",
        "What the troubleshooting lists of other fine-tuning tools, Unsloth's above all, tell people to "
        "look for.",
        "",
        "| what happens | finding | here |",
        "|---|---|---|",
    ]
    lines += [f"| {what} | {', '.join(_links(ids))} | {way} |" for what, ids, way in ELSEWHERE]
    return "\n".join(lines)


def _links(ids: tuple[str, ...]) -> Iterator[str]:
    for id in ids:
        yield f"[{id}](#{id.lower()})"


def main() -> int:
    """Write the page; with --check, only say whether it is today's."""
    made = page()
    if "--check" not in sys.argv:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made
    if not same:
        print(
            f"{PAGE.relative_to(ROOT)} is not what the catalogue says: make troubleshooting", file=sys.stderr
        )
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
