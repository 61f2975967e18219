"""What a run left: exported, proven, measured, pushed, talked to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import WhetError
from ..methods.kinds import LANGUAGE_MODELS
from ..runs.events import Event
from ..runs.store import trained_weights
from .running import find_trained

if TYPE_CHECKING:
    from ..chat.session import ChatTarget
    from ..export.artifacts import Artifact
    from ..export.hub import Part
    from ..export.modelfile_check import ModelfileFacts
    from ..plan import Plan

NO_CHAT = {
    "vision": "answers questions about images, which a chat has none of.",
    "speech": "writes what is said in recordings, which a chat has none of.",
    "tts": "writes codes of sound.",
}
"""What models do that neither answer in text nor give vectors, classes or scores."""


def export(
    target: str,
    types: Sequence[str],
    merged: bool = False,
    out: Path | None = None,
    smoke: bool = True,
    imatrix: str | None = None,
    memory: float | None = None,
) -> Iterator[Event]:
    """Export a run, or a folder with an adapter or a model; without ``types`` a run's recipe decides.

    ``types`` are GGUF types and ``merged_4bit``, ``fp8``, ``adapter_gguf``. ``imatrix`` and ``memory`` (its
    maximum_memory_usage) are those of :class:`whet.engine.recipe.ExportSection`.
    """
    from ..export.client import export_events
    from ..job_starts import export_section

    section = None
    if types or merged:
        section = export_section(types, merged, smoke, imatrix, memory).model_dump()
    folder = Path(target)
    if not folder.is_dir():
        place = str(out.absolute()) if out else None
        yield from export_events(
            {"action": "export", "run": find_trained(target).id, "section": section, "out": place}
        )
        return
    if section is None:
        raise WhetError("export.nothing", "Nothing to write was named.", "Add --gguf q4_k_m or --merged.")
    request = {"action": "export", "trained": str(folder.absolute()), "section": section}
    yield from export_events(request | {"out": str((out or folder / "export").absolute())})


def start_export(
    run_id: str,
    types: Sequence[str] = (),
    merged: bool = False,
    smoke: bool = True,
    *,
    started_by: str,
    key: str | None = None,
    imatrix: str | None = None,
    memory: float | None = None,
) -> str:
    """Export a run into its own folder as a job: a run by itself, detached; returns the job's id.

    Without ``types`` and ``merged`` the run's recipe decides; ``types``, ``imatrix`` and ``memory`` are those
    of :func:`export`, ``key`` that of :func:`start`. Raises WhetError ``export.untrained``,
    ``export.memory_share``, ``gguf.unknown_type``, ``run.key_reused``.
    """
    from ..job_starts import start_export

    return start_export(find_trained(run_id), types, merged, smoke, started_by, key, imatrix, memory)


def start_evaluation(
    run_id: str,
    data: str | None = None,
    max_rows: int | None = None,
    prompts: Sequence[str] = (),
    *,
    started_by: str,
    key: str | None = None,
) -> str:
    """Measure base and tuned model beside each other as a job; returns the job's id.

    On the rows the run held out, or those of ``data``, by the loss and the metrics of the run's method;
    language models answer ``prompts``, too, or a few of the rows' own. Raises WhetError ``export.untrained``,
    ``eval.no_rows``, ``eval.max_rows``, ``eval.prompts``, ``eval.too_large``, ``run.key_reused``.
    """
    from ..job_starts import start_evaluation

    return start_evaluation(find_trained(run_id), data, max_rows, prompts, started_by, key)


def start_smoke(gguf: Path, reference: Path, *, started_by: str, key: str | None = None) -> str:
    """:func:`smoke` as a job; returns the job's id.

    Raises WhetError ``smoke.no_gguf``, ``smoke.no_reference``, ``run.key_reused``.
    """
    from ..job_starts import start_smoke

    return start_smoke(gguf, reference, started_by, key)


def gguf_types() -> dict[str, float]:
    """GGUF types that can be written, the usual ones first, and their bits a weight on average."""
    from ..export.gguf.types import GGUF_TYPES, USUAL

    names = [*USUAL, *(name for name in GGUF_TYPES if name not in USUAL)]
    return {name: GGUF_TYPES[name].bits_per_weight for name in names}


def usual_target(method: str) -> str:
    """The file that most people want of a run of this method: a name as ``start_export`` takes it."""
    from ..export.gguf.types import USUAL, USUAL_FOR_EMBEDDINGS

    if method in LANGUAGE_MODELS:
        return USUAL[0]
    return USUAL_FOR_EMBEDDINGS[0] if method == "embedding" else "merged"


def export_targets(plan: Plan) -> dict[str, int]:
    """What can be written of a run beside GGUF models, and its bytes: merged weights in 16, 4 and 8 bits,
    and the adapter as a GGUF where its kind allows that. Of models that answer nothing the merged ones alone.
    """
    from ..disk import target_bytes

    sizes = target_bytes(plan.recipe, plan.resolved, plan.model)
    talks = plan.recipe.method.kind in LANGUAGE_MODELS
    return sizes if talks else {"merged": sizes["merged"]}


def artifacts(run_id: str) -> list[Artifact]:
    """What a run's export holds: each part's size, and the verdict of exactly these bytes."""
    from ..export.artifacts import list_artifacts

    return list_artifacts(find_trained(run_id).export)


def artifact(gguf: Path) -> Artifact:
    """The same of one GGUF file, wherever it lies."""
    from ..export.artifacts import gguf_artifact

    return gguf_artifact(gguf)


def trained(run_id: str) -> Path:
    """The adapter or the whole model that a run trained. Raises WhetError ``export.untrained``."""
    return trained_weights(find_trained(run_id))


def pushable(run_id: str, part: Part, force: bool = False) -> list[Artifact]:
    """What :func:`push` would upload. Raises WhetError ``hub.nothing``, ``hub.unproven`` unless ``force``."""
    from ..export.hub import list_part

    return list_part(find_trained(run_id).export, part, force=force)


def push(
    run_id: str,
    repo: str,
    part: Part,
    private: bool = True,
    force: bool = False,
    tell: Callable[[Event], None] = lambda event: None,
) -> str:
    """Upload one part of a run's export to the hub, with the hub's own token; returns the address.

    ``tell`` takes what happens, from the thread that called. An upload that was interrupted goes on when it
    is called again. Raises WhetError ``hub.*``; see :mod:`whet.engine.export.hub`.
    """
    from ..export.hub import push_part

    return push_part(find_trained(run_id), part, repo, private=private, force=force, tell=tell)


def write_modelfile(target: str, out: Path | None = None) -> ModelfileFacts:
    """Write the Modelfile of an exported run or folder anew; see :mod:`whet.engine.export.regenerate`."""
    from ..export.regenerate import regenerate_modelfile

    folder = Path(target)
    if folder.is_dir():
        adapter = (folder / "adapter_config.json").is_file()
        base = _adapter_target(folder, weights=False).model if adapter else None
        return regenerate_modelfile(folder, out or folder / "export", base)
    found = find_trained(target)
    trained = trained_weights(found)
    return regenerate_modelfile(trained, out or found.export, base=found.load_plan().model.path)


def smoke(gguf: Path, reference: Path) -> Iterator[Event]:
    """Prove a GGUF against the model folder (or adapter) it was made from, or merged weights against the
    adapter."""
    from ..export.client import export_events

    request = {"action": "smoke", "gguf": str(gguf.absolute()), "reference": str(reference.absolute())}
    return export_events(request)


def adapter_base(folder: Path) -> str:
    """The base model that an adapter's folder names. Raises WhetError ``model.no_base``."""
    from ..models.locate import adapter_base as base

    return base(folder)


def chat_target(target: str) -> ChatTarget:
    """What ``whet chat TARGET`` means: a GGUF file, a model folder, an adapter folder, or a run."""
    from ..chat.session import ChatTarget
    from ..models.locate import resolve_model

    path = Path(target)
    if path.suffix == ".gguf" and path.is_file():
        return ChatTarget(gguf=path.absolute())
    if (path / "adapter_config.json").is_file():
        return _adapter_target(path)
    if (path / "config.json").is_file():
        return ChatTarget(model=resolve_model(target, weights=True))
    found = find_trained(target)
    kind = found.load_plan().recipe.method.kind
    if kind not in LANGUAGE_MODELS:
        raise WhetError(
            "chat.no_language_model",
            f"Run {found.id} trained by method.kind={kind}: its model "
            + NO_CHAT.get(kind, "gives vectors, classes or scores, and answers nothing."),
            f"docs/methods.md shows how the result is used; `whet show {found.id}` says where it lies.",
        )
    if (found.export / "adapter").is_dir():
        return ChatTarget(model=found.load_plan().model.path, adapter=found.export / "adapter")
    if (found.export / "model").is_dir():
        return ChatTarget(model=found.export / "model")
    raise WhetError(
        "chat.nothing_trained",
        f"Run {found.id} is {found.status()} and has no finished weights yet.",
        f"Wait for it: whet attach {found.id}",
    )


def _adapter_target(path: Path, weights: bool = True) -> ChatTarget:
    from ..chat.session import ChatTarget
    from ..models.locate import adapter_base, resolve_model
    from ..models.own_files import check_adapter

    check_adapter(path)
    base = adapter_base(path)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    model = resolve_model(base, config.get("revision"), weights=weights)
    return ChatTarget(model=model, adapter=path.absolute())
