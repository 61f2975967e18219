"""The one façade that the command line, the TUI and the MCP server call. It imports no torch.

What needs torch runs elsewhere: in a run's own worker, or in a short process that speaks JSON lines.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WhetError
from .findings import Finding, Fix
from .printable import printable
from .runs import supervisor
from .runs.control import StopRequest
from .runs.events import (
    FAST_PATH,
    CheckpointEvent,
    DoneEvent,
    ErrorEvent,
    EvalEvent,
    Event,
    ExportEvent,
    FindingEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
    read_events,
)
from .runs.keys import start_once
from .runs.log import LogPage, read_log
from .runs.store import RunDir, RunState, RunStore, RunSummary, Status, new_id, trained_weights
from .settings import Settings, settings

if TYPE_CHECKING:
    from .chat.session import ChatPiece, ChatSession, ChatTarget, Who
    from .checks.catalogue import Entry
    from .data.inspection import DataReport
    from .data.preview import RowText, TemplatePreview
    from .data.template_facts import TemplateFacts
    from .doctor import DoctorReport, FlagReport
    from .export.artifacts import Artifact
    from .export.hub import Part
    from .export.modelfile_check import ModelfileFacts
    from .fixing import Fixed
    from .fixing import Proposal as PatchedText
    from .goals import Goal, Option, Proposal
    from .hardware import Machine
    from .kernel_report import KernelReport
    from .models.hub_search import HubModel
    from .models.listing import ModelEntry
    from .models.report import ModelReport
    from .plan import RECIPE_KEYS, Plan
    from .recipe import Recipe
    from .recipe_files import parse_override, patched, recipe_from_text, shipped, to_yaml
    from .redaction import Redactor
    from .run_view import RunView
    from .surroundings.facts import GPUHealth
    from .template_compare import Comparison
    from .template_view import TemplateView
    from .yaml_edit import set_key

# Loaded when first used: listing runs and completing words in a shell must not wait for the planner.
_LAZY = {
    "RECIPE_KEYS": "plan",
    "Artifact": "export.artifacts",
    "ChatPiece": "chat.session",
    "ChatSession": "chat.session",
    "ChatTarget": "chat.session",
    "Comparison": "template_compare",
    "DataReport": "data.inspection",
    "DoctorReport": "doctor",
    "FlagReport": "doctor",
    "GPUHealth": "surroundings.facts",
    "Entry": "checks.catalogue",
    "Fixed": "fixing",
    "Goal": "goals",
    "HubModel": "models.hub_search",
    "KernelReport": "kernel_report",
    "Machine": "hardware",
    "ModelEntry": "models.listing",
    "ModelReport": "models.report",
    "Option": "goals",
    "Plan": "plan",
    "Proposal": "goals",
    "Recipe": "recipe",
    "Redactor": "redaction",
    "RowText": "data.preview",
    "RunView": "run_view",
    "TemplateFacts": "data.template_facts",
    "TemplatePreview": "data.preview",
    "TemplateView": "template_view",
    "Who": "chat.session",
    "parse_override": "recipe_files",
    "patched": "recipe_files",
    "recipe_from_text": "recipe_files",
    "set_key": "yaml_edit",
    "shipped": "recipe_files",
    "to_yaml": "recipe_files",
}

__all__ = [
    "FAST_PATH",
    "RECIPE_KEYS",
    "Artifact",
    "ChatPiece",
    "ChatSession",
    "ChatTarget",
    "CheckpointEvent",
    "Comparison",
    "DataReport",
    "DoctorReport",
    "DoneEvent",
    "Entry",
    "ErrorEvent",
    "EvalEvent",
    "Event",
    "ExportEvent",
    "Finding",
    "FindingEvent",
    "Fix",
    "Fixed",
    "FlagReport",
    "GPUHealth",
    "Goal",
    "HubModel",
    "KernelReport",
    "LogPage",
    "Machine",
    "ModelEntry",
    "ModelReport",
    "Option",
    "PhaseEvent",
    "Plan",
    "Proposal",
    "Recipe",
    "Redactor",
    "RowText",
    "RunState",
    "RunSummary",
    "RunView",
    "SampleEvent",
    "Settings",
    "Status",
    "StepEvent",
    "StopRequest",
    "TemplateFacts",
    "TemplatePreview",
    "TemplateView",
    "WhetError",
    "Who",
    "parse_override",
    "patched",
    "printable",
    "recipe_from_text",
    "set_key",
    "settings",
    "shipped",
    "to_yaml",
]

LAST = "last"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __package__), name)


# --- recipes and plans


def recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe file or a shipped recipe's name, with ``key=value`` overrides."""
    from .recipe_files import load_recipe

    return load_recipe(source, overrides)


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a shipped recipe to start from. Refuses to overwrite."""
    from .recipe_files import find_recipe

    source = find_recipe(name)
    target = to / f"{Path(name).stem}.yaml" if to.is_dir() else to
    if target.exists():
        raise WhetError("recipe.exists", f"{target} exists.", "Name another file: --copy NAME --to FILE")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise WhetError(
            "recipe.not_writable",
            f"Cannot write {target}: {error.strerror}.",
            "Name another place with --to.",
        ) from error
    return target


def about_recipe(name: str) -> str:
    """The first line of a shipped recipe's comment."""
    from .recipe_files import find_recipe

    return find_recipe(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def schema() -> dict[str, Any]:
    """JSON Schema of the recipe."""
    from .recipe import Recipe

    return Recipe.model_json_schema()


def plan(
    wanted: Recipe, overrides: Sequence[str] = (), progress: Callable[[int], None] | None = None
) -> Plan:
    """What would happen: every value with its origin, memory, time, findings. ``progress`` counts rows read.

    ``overrides`` are the ``key=value`` words already applied to ``wanted``: they mark the values' origins.
    """
    from .plan import make_plan

    return make_plan(wanted, overrides=overrides, progress=progress)


def keep_plan(agreed: Plan) -> str:
    """Keep a plan so that it can be started by its id later; returns the id. The newest 200 are kept."""
    from .plan_store import keep_plan as keep

    return keep(agreed)


def kept_plan(plan_id: str) -> Plan:
    """A kept plan by its id, or a beginning that only it has. Raises WhetError ``plan.unknown``."""
    from .plan_store import kept_plan as kept

    return kept(plan_id)


def propose(goal: Goal, progress: Callable[[int], None] | None = None) -> Proposal:
    """A whole recipe for a goal, planned here, with the reason of each value; starts nothing."""
    from .goals import propose

    return propose(goal, progress)


def models(
    query: str | None = None, fits_gib: float | None = None, folders: Sequence[Path] = ()
) -> list[ModelEntry]:
    """Models on this machine, then those people commonly tune.

    ``query`` is part of a name, family or licence; ``fits_gib`` keeps what trains in that much memory;
    ``folders`` are looked through for model directories.
    """
    from .models.listing import list_models

    return list_models(query, fits_gib, folders)


def hub_login() -> str:
    """Of the hub: ``offline``, ``logged in`` or ``not logged in``; asks the machine, not the network."""
    from huggingface_hub import get_token

    if settings().offline:
        return "offline"
    return "logged in" if get_token() is not None else "not logged in"


def search_models(query: str, limit: int = 20) -> list[HubModel]:
    """Models on the hub by words, the most downloaded first. Raises WhetError ``hub.offline``,
    ``hub.unreachable``."""
    from .models.hub_search import search_hub

    return search_hub(query, limit)


def inspect_model(name: str, revision: str | None = None) -> ModelReport:
    """Facts, capabilities, template and memory of one model; no weights are read."""
    from .models.report import inspect_model

    return inspect_model(name, revision)


# --- findings


def fix(target: str, ids: Sequence[str] = (), progress: Callable[[int], None] | None = None) -> Fixed:
    """Patches of what was found about a recipe (or run) on a copy of it, planned again; writes nothing.

    ``ids`` choose among the findings; by default the errors and warnings that have a patch.
    """
    from .fixing import fix_recipe, fix_run
    from .recipe_files import shipped

    path = Path(target)
    if path.is_file() or target in shipped() or path.suffix in (".yaml", ".yml"):
        return fix_recipe(target, ids, progress)
    return fix_run(run(target), ids, progress)


def patch_text(
    text: str, findings: Sequence[Finding], ids: Sequence[str] = (), name: str = "recipe"
) -> PatchedText:
    """Patches of findings on a recipe's text, with the diff; plans nothing. See :func:`.fixing.propose`."""
    from .fixing import propose

    return propose(text, findings, ids, name)


def write_recipe(text: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write a recipe's text to a file, whole. Refuses to replace one unless told to."""
    from .fixing import write_fixed

    return write_fixed(text, out, overwrite=overwrite)


def explain(id: str) -> Entry:
    """What a finding's id means. Raises WhetError ``explain.unknown_id`` with the nearest ids."""
    from .checks.catalogue.search import find_entry

    return find_entry(id)


def catalogue() -> dict[str, Entry]:
    """All findings' ids with what they mean, in the order of the phases."""
    from .checks.catalogue import CATALOGUE

    return CATALOGUE


# --- data and the machine


def inspect_data(values: dict[str, Any], progress: Callable[[int], None] | None = None) -> DataReport:
    """Read every row of a recipe's data (``values``: its model and data sections) and report."""
    from .data.token_store import prepare
    from .models.locate import resolve_model
    from .recipe_files import build

    wanted = build(values, where="data")
    return prepare(wanted, resolve_model(wanted.model.name, wanted.model.revision), progress).report


def data_suffixes() -> tuple[str, ...]:
    """Endings of the files that can be read as data, with their dot."""
    from .data.readers import READERS

    return tuple(READERS)


def first_rows(wanted: Recipe, rows: int = 3) -> list[RowText]:
    """The first rows of a recipe's training data as they stand. Raises WhetError ``data.*``."""
    from .data.preview import first_rows

    return first_rows(wanted, rows)


def template_view(
    values: dict[str, Any],
    rows: int = 2,
    gguf: Path | None = None,
    modelfile: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TemplateView:
    """Rows of a recipe's data (``values``: its model and data sections) as tokens, what the checks say of
    them and of the template, and how the model's own template, a GGUF and a Modelfile render the same."""
    from .recipe_files import build
    from .template_view import template_view as view

    return view(build(values, where="template"), rows, gguf, modelfile, progress)


def chat_templates() -> dict[str, str]:
    """Name of each chat template whet knows, and whose it is."""
    from .data.chat_templates import TEMPLATES

    return {name: info.family for name, info in TEMPLATES.items()}


def machine() -> Machine:
    """GPUs, CPU, memory and disk as they are now; quick."""
    from .hardware import inspect_machine

    return inspect_machine()


def gpus() -> list[GPUHealth]:
    """Load, memory, heat and users of each GPU now, in a few milliseconds; none without a driver."""
    from .hardware import inspect_machine
    from .surroundings.gpu_health import read_gpu_health

    return read_gpu_health([gpu.uuid for gpu in inspect_machine().gpus])


def doctor(progress: Callable[[str], None] | None = None) -> DoctorReport:
    """What this machine has and what is wrong with it; ``progress`` hears what is being looked at."""
    from .doctor import examine

    return examine(progress)


def environment_flags() -> list[FlagReport]:
    """Environment flags that are set and matter: who reads each, what it does now, what it contradicts."""
    from .doctor import explain_environment

    return explain_environment()


def bundle(report: DoctorReport, target: Path) -> list[str]:
    """Write a report, flags, versions and the last runs to an archive without secrets; names inside it."""
    from .doctor_bundle import write_bundle

    return write_bundle(report, target)


def check_kernels(interpret: bool = False, progress: Callable[[str], None] | None = None) -> KernelReport:
    """Parity and speed of the kernels here, and which back end each operation will use.

    ``interpret`` checks small cases on a machine without a GPU; ``progress`` hears what is being checked.
    """
    from .kernel_report import check_kernels as check

    return check(interpret, progress)


# --- runs


def model_code(agreed: Plan) -> str | None:
    """What of a plan's model a person may allow to run, ``owner/name@commit``; None: it brings no code."""
    from .models.own_code import own_code

    return own_code(agreed.model.name, agreed.model.path)


def start(
    agreed: Plan, started_by: str, key: str | None = None, remote_code: frozenset[str] = frozenset()
) -> str:
    """Start a run from a plan, detached from this process; returns its id.

    ``remote_code`` names the models whose own Python code may run, as :func:`model_code` does: the word of a
    person or an operator, never of a recipe or a tool call.

    The same ``key`` (1 to 200 characters of the caller's choice) starts one run only, from whatever process
    and after whatever crash. Raises WhetError ``plan.blocked`` when the plan holds errors the recipe does not
    accept, ``run.key_reused`` when the key started another plan.
    """
    blocked = agreed.blocked()
    if blocked:
        ids = ", ".join(sorted({finding.id for finding in blocked}))
        raise WhetError(
            "plan.blocked",
            f"{len(blocked)} finding(s) block the start: {ids}.",
            f"Apply their fixes, or accept them by name: accept='[{ids}]'",
        )

    def create(run_id: str) -> RunDir:
        code = model_code(agreed) if remote_code else None
        return RunStore().create(agreed, started_by, run_id, code if code in remote_code else None)

    return start_once(key, f"plan {agreed.id}", new_id(agreed), create).id


def runs() -> list[RunSummary]:
    """All runs, newest first."""
    return RunStore().list()


def find(run_id: str) -> RunDir:
    """The directory of a run, by id, unique beginning, or ``last``: the newest that trains."""
    if run_id == LAST:
        newest = [one for one in runs() if not one.state.is_job][:1]
        if not newest:
            raise WhetError("run.none", "There is no run yet.", "Start one: whet demo")
        run_id = newest[0].id
    return RunStore().get(run_id)


def _find_trained(run_id: str) -> RunDir:
    """The run whose weights are meant: of a job its parent."""
    found = find(run_id)
    parent = found.read_state().parent
    return found if parent is None else RunStore().get(parent)


def run(run_id: str) -> RunView:
    """All that is known of one run."""
    from .run_view import view_run

    return view_run(find(run_id))


def follow(run_id: str, offset: int = 0) -> Iterator[Event]:
    """Events of a run from byte ``offset`` on, as they come, until its worker has ended."""
    return supervisor.follow(find(run_id), offset)


def events(run_id: str, offset: int = 0, most: int = -1) -> tuple[list[Event], int]:
    """Events of a run so far from byte ``offset`` on, and the offset to go on from; does not wait.

    ``most`` are the bytes to read at once, by default all there are; a begun line is read to its end.
    """
    return read_events(find(run_id).events, offset, most)


def stop(run_id: str, now: bool = False) -> StopRequest:
    """Ask a run to finish its step, checkpoint and end; asked twice, or ``now``, it ends at once.

    Returns what was asked. Raises WhetError ``run.not_running`` when no worker is there to hear it.
    """
    return supervisor.stop(find(run_id), now=now)


def request_checkpoint(run_id: str) -> None:
    """Ask a run for a checkpoint after its step; it goes on. Raises WhetError ``run.not_running``."""
    supervisor.request_checkpoint(find(run_id))


def log(run_id: str, lines: int = 100, before: int | None = None, search: str = "") -> LogPage:
    """The last ``lines`` lines of a worker's log, or those before byte ``before``, that contain ``search``.

    Give a page's ``start`` as ``before`` for the page above it. Raises WhetError ``log.range``.
    """
    return read_log(find(run_id).log, lines, before, search)


def resume(run_id: str, overrides: Sequence[str] = ()) -> str:
    """Go on from the last finished checkpoint, detached; returns the run's id.

    ``overrides`` may lengthen or shorten the run, or change evaluation and export; model, data and adapter
    stay as they are.
    """
    found = find(run_id)
    supervisor.resume(found, overrides)
    return found.id


def trash(run_id: str) -> str:
    """Throw a run away until :func:`restore`; returns its id. Raises WhetError ``run.alive``."""
    from .runs.trash import trash as throw

    found = find(run_id)
    throw(found)
    return found.id


def restore(run_id: str) -> str:
    """Bring back what :func:`trash` threw away. Raises WhetError ``run.not_in_trash``."""
    from .runs.trash import restore as bring_back

    return bring_back(run_id).id


# --- artefacts


def export(
    target: str, types: Sequence[str], merged: bool = False, out: Path | None = None, smoke: bool = True
) -> Iterator[Event]:
    """Export a run, or a folder with an adapter or a model; without ``types`` a run's recipe decides."""
    from .export.client import export_events
    from .export.gguf.types import check_types
    from .recipe import ExportSection

    check_types(list(types))
    wanted = bool(types) or merged
    section = (
        ExportSection(merged=merged, gguf=list(types), smoke_test=smoke).model_dump() if wanted else None
    )
    folder = Path(target)
    if not folder.is_dir():
        place = str(out.absolute()) if out else None
        yield from export_events(
            {"action": "export", "run": _find_trained(target).id, "section": section, "out": place}
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
) -> str:
    """Export a run into its own folder as a job: a run by itself, detached; returns the job's id.

    Without ``types`` and ``merged`` the run's recipe decides. ``key`` is that of :func:`start`. Raises
    WhetError ``export.untrained``, ``gguf.unknown_type``, ``run.key_reused``.
    """
    from .job_starts import start_export

    return start_export(_find_trained(run_id), types, merged, smoke, started_by, key)


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

    On the rows the run held out, or those of ``data``; both answer ``prompts``, or a few of the rows' own.
    Raises WhetError ``export.untrained``, ``eval.no_rows``, ``eval.max_rows``, ``run.key_reused``.
    """
    from .job_starts import start_evaluation

    return start_evaluation(_find_trained(run_id), data, max_rows, prompts, started_by, key)


def start_smoke(gguf: Path, reference: Path, *, started_by: str, key: str | None = None) -> str:
    """:func:`smoke` as a job; returns the job's id.

    Raises WhetError ``smoke.no_gguf``, ``smoke.no_reference``, ``run.key_reused``.
    """
    from .job_starts import start_smoke

    return start_smoke(gguf, reference, started_by, key)


def gguf_types() -> dict[str, float]:
    """GGUF types that can be written, the usual ones first, and their bits a weight on average."""
    from .export.gguf.types import GGUF_TYPES

    usual = ("q4_k_m", "q8_0", "f16")
    names = [*usual, *(name for name in GGUF_TYPES if name not in usual)]
    return {name: GGUF_TYPES[name].bits_per_weight for name in names}


def artifacts(run_id: str) -> list[Artifact]:
    """What a run's export holds: each part's size, and the verdict of exactly these bytes."""
    from .export.artifacts import list_artifacts

    return list_artifacts(_find_trained(run_id).export)


def artifact(gguf: Path) -> Artifact:
    """The same of one GGUF file, wherever it lies."""
    from .export.artifacts import gguf_artifact

    return gguf_artifact(gguf)


def trained(run_id: str) -> Path:
    """The adapter or the whole model that a run trained. Raises WhetError ``export.untrained``."""
    return trained_weights(_find_trained(run_id))


def pushable(run_id: str, part: Part, force: bool = False) -> list[Artifact]:
    """What :func:`push` would upload. Raises WhetError ``hub.nothing``, ``hub.unproven`` unless ``force``."""
    from .export.hub import list_part

    return list_part(_find_trained(run_id).export, part, force=force)


def push(run_id: str, repo: str, part: Part, private: bool = True, force: bool = False) -> str:
    """Upload one part of a run's export to the hub, with the hub's own token; returns the address.

    Raises WhetError ``hub.*``; see :mod:`whet.engine.export.hub`.
    """
    from .export.hub import push_part

    return push_part(_find_trained(run_id).export, part, repo, private=private, force=force)


def write_modelfile(target: str, out: Path | None = None) -> ModelfileFacts:
    """Write the Modelfile of an exported run or folder anew; see :mod:`whet.engine.export.regenerate`."""
    from .export.regenerate import regenerate_modelfile

    folder = Path(target)
    if folder.is_dir():
        adapter = (folder / "adapter_config.json").is_file()
        base = _adapter_target(folder, weights=False).model if adapter else None
        return regenerate_modelfile(folder, out or folder / "export", base)
    found = _find_trained(target)
    trained = trained_weights(found)
    return regenerate_modelfile(trained, out or found.export, base=found.load_plan().model.path)


def smoke(gguf: Path, reference: Path) -> Iterator[Event]:
    """Prove a GGUF against the model folder (or adapter) it was made from, or merged weights against the
    adapter."""
    from .export.client import export_events

    request = {"action": "smoke", "gguf": str(gguf.absolute()), "reference": str(reference.absolute())}
    return export_events(request)


def adapter_base(folder: Path) -> str:
    """The base model that an adapter's folder names. Raises WhetError ``model.no_base``."""
    from .models.locate import adapter_base as base

    return base(folder)


def chat_target(target: str) -> ChatTarget:
    """What ``whet chat TARGET`` means: a GGUF file, a model folder, an adapter folder, or a run."""
    from .chat.session import ChatTarget

    path = Path(target)
    if path.suffix == ".gguf" and path.is_file():
        return ChatTarget(gguf=path.absolute())
    if (path / "adapter_config.json").is_file():
        return _adapter_target(path)
    if (path / "config.json").is_file():
        return ChatTarget(model=path.absolute())
    found = _find_trained(target)
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
    from .chat.session import ChatTarget
    from .models.locate import adapter_base, resolve_model

    base = adapter_base(path)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    model = resolve_model(base, config.get("revision"), weights=weights)
    return ChatTarget(model=model, adapter=path.absolute())
