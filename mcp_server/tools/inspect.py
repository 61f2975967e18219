"""Looking: the machine, data, models, templates. Nothing here writes."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from pydantic import Field

from whet.engine import api

from ..options import Options
from ..results import FoundOut, Result, call
from ..root import Root
from . import rows as shown
from .changes import confined, merged
from .common import ACTIVE
from .inspect_models import ModelTools
from .reading import Progress, read
from .toolsets import READS

GIB = 1 << 30
FRESH = 60.0
"""Seconds for which the look at the machine counts: it asks the hub, which may take seconds to be silent."""
WITHOUT_MODEL = ("D12", "D15", "D16")
"""Findings about rows alone, whatever model reads them."""
OF_ROWS = ("duplicates", "empty_replies", "odd_roles", "answer_in_prompt")
OF_MODEL = ("unsupervised_rows", "truncated_rows", "marked_rows")
BAD_ROWS = 10
CLASSES = 20

Format = Literal["auto", "text", "alpaca", "sharegpt", "messages", "prompt_completion"]


class EnvResult(Result):
    """What the machine has."""

    gpus: list[dict[str, Any]]
    cpu: str
    memory_gib: float
    disk_free_gib: float
    versions: dict[str, str]
    hub: dict[str, Any]
    flags: list[dict[str, str]]
    active_runs: list[str]
    findings: list[FoundOut]


class DatasetResult(Result):
    """What is in a data set."""

    layout: dict[str, Any]
    counts: dict[str, int]
    tokens: dict[str, float]
    bad_rows: list[dict[str, str]]
    findings: list[FoundOut]
    sample_rows: list[dict[str, str]]


class TemplateResult(Result):
    """Rows as they are trained on."""

    template: dict[str, Any]
    rows: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    findings: list[FoundOut]


class InspectTools(ModelTools):
    """Read-only tools about what is there before a run."""

    name: ClassVar[str] = "inspect"
    tools: ClassVar[dict[str, ToolAnnotations]] = {
        "env_inspect": READS,
        "dataset_inspect": READS,
        "model_list": READS,
        "model_inspect": READS,
        "template_preview": READS,
    }

    def __init__(self, options: Options, root: Root) -> None:
        super().__init__(options, root)
        self._lock = threading.Lock()
        self._looked: tuple[float, api.DoctorReport, list[dict[str, str]]] | None = None

    def env_inspect(self, fresh: bool = False) -> EnvResult:
        """GPUs, memory, disk, versions, hub login, active runs, and what is wrong. Call it first.

        fresh: look again at what was seen in the last minute.
        """
        report, flags = self._machine(fresh)
        machine = report.machine
        active = [run.id for run in api.runs() if run.status in ACTIVE]
        gpus = [
            {
                "name": gpu.name,
                "memory_gib": round(gpu.memory_total / GIB, 1),
                "free_gib": round(gpu.memory_free / GIB, 1),
                "capability": ".".join(map(str, gpu.capability)),
            }
            for gpu in machine.gpus
        ]
        where = f"{len(gpus)} GPU(s): {gpus[0]['name']}" if gpus else "No GPU: training runs on the CPU"
        found = [FoundOut.of(one) for one in report.findings]
        return EnvResult(
            summary=f"{where}; {machine.ram_available / GIB:.0f} GiB of memory and "
            f"{machine.disk_free / GIB:.0f} GiB of disk free; {len(report.findings)} finding(s).",
            next=[
                *(call("job_wait", run_id=run, until="end") for run in active[:1]),
                call("dataset_inspect", data="demo"),
                call("model_list"),
            ],
            warnings=[one.warning() for one in found if one.severity == "error"],
            gpus=gpus,
            cpu=f"{machine.cpu_name}, {machine.cpu_count} cores",
            memory_gib=round(machine.ram_total / GIB, 1),
            disk_free_gib=round(machine.disk_free / GIB, 1),
            versions=machine.versions,
            hub=_hub(report),
            flags=flags,
            active_runs=active,
            findings=found,
        )

    def _machine(self, fresh: bool) -> tuple[api.DoctorReport, list[dict[str, str]]]:
        """The machine, and flags that contradict; one look serves all who ask within a minute."""
        with self._lock:
            now = time.monotonic()
            if fresh or self._looked is None or now - self._looked[0] > FRESH:
                flags = [
                    {"name": one.name, "value": one.value, "conflict": one.conflict, "advice": one.advice}
                    for one in api.environment_flags()
                    if one.conflict
                ]
                self._looked = now, api.doctor(), flags
            return self._looked[1:]

    async def dataset_inspect(
        self,
        context: Context[Any, Any],
        data: Annotated[str, Field(description="Path inside the root, hub id, or demo.")],
        model: Annotated[str | None, Field(description="Whose tokens count.")] = None,
        format: Format = "auto",
        columns: Annotated[dict[str, str] | None, Field(description="Format's field: data's column.")] = None,
        template: str | None = None,
        rows: Annotated[int, Field(ge=0, le=20)] = 3,
    ) -> DatasetResult:
        """Reads every row: format, lengths, bad rows, findings with fixes, some rows."""
        settings = {
            key: value
            for key, value in (
                ("data.format", None if format == "auto" else format),
                ("data.columns", columns or None),
                ("data.template", template),
            )
            if value is not None
        }
        return await read(partial(self._dataset, data, model, settings, rows), context)

    def _dataset(
        self, data: str, model: str | None, settings: dict[str, Any], rows: int, progress: Progress
    ) -> DatasetResult:
        recipe = self._recipe(model or "demo", data, settings)
        values = recipe.model_dump(include={"model", "data"}, exclude_unset=True)
        uses = api.row_uses(values)
        if "data.format" not in settings:  # which only chats and texts have
            method = api.with_method(values).get("method", {"kind": "sft"})
            recipe = api.patched(recipe, {"method.kind": method["kind"]})
        plan = api.plan(recipe, progress=progress)
        report = plan.data.report
        found = [
            FoundOut.of(one)
            for one in plan.findings
            if one.id.startswith("D") and (model is not None or one.id in WITHOUT_MODEL)
        ]
        train = report.train
        fixes = merged(one for one in found if one.severity != "note")
        return DatasetResult(
            summary=f"{train.rows:,} rows of format {report.format.name}, {report.bad_rows:,} unusable, read "
            f"for {recipe.method.kind}; {len(found)} finding(s).",
            next=[
                call("plan_create", data=data, model=model, changes={**settings, **fixes} or None),
                call("template_preview", model=model, data=data, template=settings.get("data.template"))
                if model
                else call("model_list"),
            ],
            warnings=[one.warning() for one in found if one.severity == "error"],
            layout={
                "format": report.format.name,
                "confidence": round(report.format.confidence, 3),
                "columns": plan.mapping.columns if plan.mapping else settings.get("data.columns", {}),
                "methods": {use.method: {"layout": use.layout, "columns": use.columns} for use in uses},
                "classes": dict(list(report.labels.items())[:CLASSES]),
                "languages": train.languages,
            },
            counts=_counts(report, with_model=model is not None),
            tokens=_tokens(train) if model else {},
            bad_rows=[
                {"at": f"{one.file}:{one.line}", "reason": one.reason} for one in report.bad[:BAD_ROWS]
            ],
            findings=found,
            sample_rows=shown.samples(api.first_rows(recipe, rows)),
        )

    def _recipe(self, model: str, data: str, settings: dict[str, Any]) -> api.Recipe:
        """A recipe of a model and data of a call. Raises WhetError ``path.*``, ``recipe.*``."""
        named = {"model": {"name": self.root.source(model)}, "data": {"train": self.root.source(data)}}
        return api.patched(api.Recipe.model_validate(named), confined(settings, self.root))

    async def template_preview(
        self,
        context: Context[Any, Any],
        model: str,
        data: str,
        template: Annotated[str | None, Field(description="Name; by default the model's own.")] = None,
        rows: Annotated[int, Field(ge=1, le=5)] = 1,
        gguf: Annotated[str | None, Field(description="File to compare with.")] = None,
        modelfile: str | None = None,
    ) -> TemplateResult:
        """Rows as trained on: runs of text with offsets, what is learnt, ⟦special⟧ tokens; whose format."""
        return await read(partial(self._preview, model, data, template, rows, gguf, modelfile), context)

    def _preview(
        self,
        model: str,
        data: str,
        template: str | None,
        rows: int,
        gguf: str | None,
        modelfile: str | None,
        progress: Progress,
    ) -> TemplateResult:
        recipe = self._recipe(model, data, {"data.template": template, "data.bad_rows": "skip"})
        view = api.template_view(
            recipe.model_dump(include={"model", "data"}, exclude_unset=True),
            rows,
            self.root.path(gguf) if gguf else None,
            self.root.path(modelfile) if modelfile else None,
            progress,
        )
        found = [FoundOut.of(one) for one in view.findings]
        named = view.template
        fixes = merged(one for one in found if one.severity != "note")
        if template is not None:
            fixes = {"data.template": template, **fixes}
        return TemplateResult(
            summary=shown.summary(view),
            next=[call("plan_create", data=data, model=model, changes=fixes or None)],
            warnings=[one.warning() for one in found if one.severity == "error"],
            template={
                "name": "a text" if named is not None and "{" in named else named,
                "family": view.facts.family if view.facts else None,
                "model_family": view.family,
                "data_family": view.data_family,
                "end_of_turn": view.end_of_turn,
                "not_in_vocabulary": view.facts.split_markers if view.facts else [],
                "fitting": view.facts.fitting if view.facts else [],
            },
            rows=[shown.preview(row) for row in view.rows],
            comparisons=[shown.comparison(one) for one in view.comparisons],
            findings=found,
        )


def _hub(report: api.DoctorReport) -> dict[str, Any]:
    """Whether the hub can be used, and as whom; never a token."""
    hub = report.surroundings.hub
    if hub is None:
        return {}
    reach = hub.reach
    return {
        "endpoint": hub.endpoint,
        "reachable": reach.reachable if reach else None,
        "why_not": reach.why if reach else "",
        "offline_by": hub.offline_by,
        "token": hub.token_from is not None,
        "token_refused": reach.token_refused if reach else False,
        "user": reach.user if reach else None,
        "cache_free_gib": round(hub.cache_free / GIB, 1),
    }


def _counts(report: api.DataReport, with_model: bool) -> dict[str, int]:
    """Rows by what was seen in them, without zeros; with a model also what its tokenizer makes of them."""
    train = report.train
    seen = {"rows": train.rows, "bad_rows": report.bad_rows, "in_eval_too": report.eval_in_train}
    seen |= {name: getattr(train, name) for name in (*OF_ROWS, *(OF_MODEL if with_model else ()))}
    return {name: count for name, count in seen.items() if count or name == "rows"}


def _tokens(train: Any) -> dict[str, float]:
    """Tokens a row, all of them, and the share that is learnt."""
    share = train.supervised_tokens / max(train.tokens, 1)
    return {**train.length.model_dump(), "total": train.tokens, "learnt_share": round(share, 3)}
