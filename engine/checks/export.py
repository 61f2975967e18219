"""Export: what would fail only after hours of training, probed before it."""

from __future__ import annotations

from collections.abc import Iterator

from ..adapted import adapted_layers
from ..disk import FOLDERS
from ..export.gguf.native import REBUILD
from ..export.other_models import REASONS
from ..export.targets.table import TARGETS
from ..findings import Finding, Fix
from ..methods.kinds import NEXT_TOKEN
from .registry import PlanFacts, check

GIB = 2**30
UNDOABLE = ("nf4", "fp4", "int8")
INSTALL = "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install llama-cpp-python==0.3.36"
SPARE = 0.05
"""Share of the free disk that stays free."""
VARIABLES = {"home": "WHET_HOME", "hub": "HF_HOME", "temporary": "TMPDIR"}
"""What decides where a folder lies."""


@check("export", "X02")
def disk_space(facts: PlanFacts) -> Iterator[Finding]:
    """What the run writes to each filesystem against the free space there."""
    for folders, free in _filesystems(facts):
        needed = {
            kind: size for kind, size in facts.disk_bytes.items() if FOLDERS.get(kind, "home") in folders
        }
        total = sum(needed.values())
        if total <= free * (1 - SPARE):
            continue
        keep = facts.recipe.training.keep_checkpoints
        at_home = "home" in folders
        variable = VARIABLES["home" if at_home else folders[0]]
        yield Finding(
            id="X02",
            severity="error",
            title=f"The run writes about {total / GIB:.1f} GiB to the disk of {_words(folders)}, which has "
            f"{free / GIB:.1f}.",
            evidence={
                "folders": list(folders),
                "free_gib": round(free / GIB, 2),
                "needed_gib": {name: round(size / GIB, 2) for name, size in needed.items() if size},
            },
            fix=Fix(
                text=f"Point {variable} to a larger disk"
                + (", or keep fewer checkpoints and export less." if at_home else "."),
                patch={"training.keep_checkpoints": 1} if at_home and keep > 1 else {},
                command=f"export {variable}=/path/on/a/larger/disk",
            ),
        )


def _filesystems(facts: PlanFacts) -> list[tuple[tuple[str, ...], int]]:
    """The folders of each filesystem, and its free bytes."""
    disks = facts.machine.disks
    if not disks:
        return [(("home", "hub", "temporary"), facts.machine.disk_free)]
    devices = dict.fromkeys(disk.device for disk in disks)
    return [
        (
            tuple(disk.folder for disk in disks if disk.device == device),
            next(disk.free for disk in disks if disk.device == device),
        )
        for device in devices
    ]


def _words(folders: tuple[str, ...]) -> str:
    return " and ".join(VARIABLES[folder] for folder in folders)


@check("export", "X04")
def gguf_possible(facts: PlanFacts) -> Iterator[Finding]:
    """GGUF asked for: can this architecture and tokenizer be written, is the tool there?"""
    export = facts.recipe.export
    wanted = [*export.gguf, *(["the adapter"] if export.adapter_gguf else [])]
    if not wanted:
        return
    patch: dict[str, object] = {"export.gguf": []}
    if export.adapter_gguf:
        patch["export.adapter_gguf"] = False
    without = Fix(text="Export without GGUF.", patch=patch)
    if facts.gguf_refusal is not None:
        yield Finding(
            id="X04",
            severity="error",
            title=f"This model cannot be exported to GGUF. {facts.gguf_refusal}",
            evidence={"model_type": facts.model.model_type, "gguf": wanted},
            fix=without,
        )
    if not facts.llama_cpp or facts.llama_cpp_says:
        missing = "which is not installed" if not facts.llama_cpp else "which does not load"
        yield Finding(
            id="X04",
            severity="error",
            title=f"GGUF export needs llama-cpp-python, {missing}.",
            evidence={"gguf": wanted} | ({"says": facts.llama_cpp_says} if facts.llama_cpp_says else {}),
            fix=Fix(
                text="Install it, or export without GGUF."
                if not facts.llama_cpp
                else "Repair it (LLAMA_CPP_LIB_PATH, if set, must name the folder of its libraries), or "
                "export without GGUF.",
                patch=without.patch,
                command=INSTALL if not facts.llama_cpp else REBUILD,
            ),
        )


@check("export", "X04")
def adapter_file_possible(facts: PlanFacts) -> Iterator[Finding]:
    """llama.cpp lays an adapter over linear layers, not over stacked experts."""
    if not facts.recipe.export.adapter_gguf:
        return
    experts = [layer.pattern for layer in adapted_layers(facts.model, facts.recipe.adapter) if layer.bare]
    if experts:
        yield Finding(
            id="X04",
            severity="error",
            title="The adapter cannot become a GGUF: it trains experts, which llama.cpp takes merged only.",
            evidence={"layers": experts},
            fix=Fix(
                text="Export a merged GGUF instead.",
                patch={"export.adapter_gguf": False, "export.gguf": facts.recipe.export.gguf or ["q8_0"]},
            ),
        )


@check("export", "X04")
def targets_possible(facts: PlanFacts) -> Iterator[Finding]:
    """4 and 8 bits and adapter files are written of language models, whose readers know them."""
    asked = [name for name in TARGETS if getattr(facts.recipe.export, name)]
    speaks = facts.recipe.method.kind in NEXT_TOKEN and facts.model.architecture not in REASONS
    if asked and not speaks:
        yield Finding(
            id="X04",
            severity="error",
            title=f"{' and '.join(asked)} cannot be written: this method does not train a language model.",
            evidence={"method": facts.recipe.method.kind},
            fix=Fix(
                text="Export 16-bit weights instead.",
                patch={"export.merged": True, **{f"export.{name}": False for name in asked}},
            ),
        )


@check("export", "X04")
def merge_possible(facts: PlanFacts) -> Iterator[Finding]:
    """Merged weights and GGUF need a base that is 16-bit, or rounded in a way that can be undone."""
    export, held = facts.recipe.export, facts.model.quantization
    targets = [name for name in TARGETS if name != "adapter_gguf" and getattr(export, name)]
    if held in (None, *UNDOABLE) or not (export.merged or export.gguf or targets):
        return
    yield Finding(
        id="X04",
        severity="error",
        title=f"The adapter cannot be merged: {facts.model.name} holds its weights quantised by {held}.",
        evidence={"quantization": held, "can_be_undone": list(UNDOABLE)},
        fix=Fix(
            text="Export the adapter alone, or train on the 16-bit original.",
            patch={
                "export.merged": False,
                "export.gguf": [],
                **{f"export.{name}": False for name in targets},
            },
        ),
    )
