"""From trained weights to proven files: adapter -> merged -> GGUF -> quantised -> smoke test -> Modelfile ->
card.

One function for worker, command line and Python API. Imports torch when it merges or converts, not before.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.exported import ExportFacts, run_export_checks
from ..errors import WhetError
from ..models.sentence_folder import is_embedding_model
from ..recipe import ExportSection
from ..runs import locks
from ..runs.context import Stopped
from ..runs.events import Event, ExportEvent, FindingEvent, PhaseEvent
from ..runs.failures import describe_failure
from ..runs.store import trained_weights
from .artifacts import list_artifacts
from .embedding_notes import embedding_notes
from .gguf.types import GGUFType, check_types
from .merge_proof import prove_merge
from .merge_report import MergeReport
from .model_card import CardFacts, run_facts, write_card
from .modelfile_check import ModelfileFacts, write_checked_modelfile
from .smoke import SCRATCH, HeldOut, prove, reference_of
from .verdict import RANK, Status, Verdict, verdict_path

if TYPE_CHECKING:
    from ..plan import Plan
    from ..runs.context import RunContext
    from ..runs.store import RunDir

Emit = Callable[[Event], None]


@dataclass
class ExportResult:
    """What was written; ``status`` is the worst verdict, None when nothing was proven."""

    paths: dict[str, Path] = field(default_factory=dict)
    """``merged``, ``modelfile``, ``card``, and each GGUF by its type."""
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> Status | None:
        return max((verdict.status for verdict in self.verdicts), key=RANK.__getitem__, default=None)


def export_model(
    trained_dir: Path,
    base_dir: Path | None,
    out_dir: Path,
    section: ExportSection,
    emit: Emit,
    held_out: HeldOut | None = None,
    *,
    name: str | None = None,
    trained_precision: str | None = None,
    facts: CardFacts | None = None,
) -> ExportResult:
    """Export what ``section`` asks for into ``out_dir``.

    Args:
        trained_dir: a PEFT adapter, or a whole model.
        base_dir: the adapter's 16-bit base; not used for a whole model.
        out_dir: gets ``merged/``, ``<name>-<type>.gguf`` with verdicts, ``Modelfile`` and ``README.md``.
        section: which artefacts, and whether to prove them.
        emit: takes phase and export events as they happen.
        held_out: rows for the smoke test, see :data:`whet.engine.export.smoke.HeldOut`.
        name: beginning of the files' names; by default the folder's.
        trained_precision: ``nf4``, ``int8`` or ``fp8`` when training held the base rounded.
        facts: of the run, for the model card.

    Raises:
        WhetError: of merging, conversion and quantisation, and ``run.disk_full``. A failed proof is in the
            result, not raised. Either way the findings are emitted.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    export = _Export(trained_dir, base_dir, out_dir, section, emit, held_out, name, trained_precision, facts)
    try:
        return export.run()
    except Stopped:
        raise
    except Exception as error:
        failure = describe_failure(error, out_dir)
        export.tell(failure)
        if isinstance(error, WhetError) or failure.code != "run.disk_full":
            raise
        raise failure from error


@dataclass
class _Export:
    """One export's settings and what it has written so far."""

    trained_dir: Path
    base_dir: Path | None
    out_dir: Path
    section: ExportSection
    emit: Emit
    held_out: HeldOut | None
    name: str | None
    trained_precision: str | None
    facts: CardFacts | None
    result: ExportResult = field(default_factory=ExportResult)
    merge: MergeReport | None = None
    fallbacks: dict[str, int] = field(default_factory=dict)
    modelfile: ModelfileFacts | None = None
    remarks: tuple[str, ...] = ()

    def run(self) -> ExportResult:
        kinds = check_types(self.section.gguf)
        if kinds or self.section.merged:
            with self._model() as model_dir:
                if is_embedding_model(model_dir):
                    self.remarks = embedding_notes(model_dir, kinds)
                if kinds and self.result.status != "fail":  # of a wrong merge nothing is made
                    self._gguf(model_dir, kinds)
                    self._modelfile(model_dir, kinds)
        self.tell()
        self._card()
        return self.result

    def tell(self, failure: WhetError | None = None) -> None:
        """What a person should know of these files: findings, whose titles go into the card."""
        seen = ExportFacts(
            self.facts.run if self.facts and self.facts.run else str(self.trained_dir),
            self.section,
            self.merge,
            tuple(self.result.verdicts),
            self.fallbacks,
            self.modelfile,
            self.remarks,
            failure,
        )
        for finding in run_export_checks(seen):
            self.result.notes.append(finding.title)
            self.emit(FindingEvent(finding=finding))

    @contextmanager
    def _model(self) -> Iterator[Path]:
        """The merged 16-bit model: kept when asked for, else there while the context lasts."""
        if not (self.trained_dir / "adapter_config.json").is_file():
            yield self.trained_dir
            return
        if self.base_dir is None:
            raise WhetError(
                "export.no_base",
                f"{self.trained_dir} is an adapter, and its base model was not named.",
                "Name the 16-bit model it was trained on.",
            )
        from .merging import merge

        keep = self.section.merged
        merged = self.out_dir / ("merged" if keep else ".merged-for-gguf")
        self.emit(PhaseEvent(phase="merge", detail="adapter into base"))
        try:
            report = self.merge = merge(
                self.base_dir,
                self.trained_dir,
                merged,
                progress=self._progress("merge", "adapter into base"),
                trained_precision=self.trained_precision,
            )
            if keep:
                self._wrote("merged", merged, report.bytes, {"dtype": report.dtype})
            if self.section.smoke_test:
                self._prove_merge(merged)
            yield merged
        finally:
            if not keep:
                shutil.rmtree(merged, ignore_errors=True)

    def _prove_merge(self, merged: Path) -> None:
        assert self.base_dir is not None
        self.emit(PhaseEvent(phase="smoke", detail="merged against base and adapter"))
        verdict = prove_merge(self.base_dir, self.trained_dir, merged, self.held_out)
        if not self.section.merged:
            verdict_path(merged).unlink()
        shown = self.out_dir / "merged"
        self._proven(verdict.model_copy(update={"gguf": str(shown)}), shown)

    def _proven(self, verdict: Verdict, path: Path) -> None:
        self.result.verdicts.append(verdict)
        self.emit(ExportEvent(kind="smoke", path=str(path), detail=verdict.model_dump(mode="json")))

    def _gguf(self, model_dir: Path, kinds: list[GGUFType]) -> None:
        """The f16 file first: it is what the others are made from and held against."""
        others = [kind for kind in kinds if kind.name != "f16"]
        with self._f16(model_dir, keep=len(others) < len(kinds)) as (f16, kept):
            files = [f16, *(self._derive(model_dir, f16, kind) for kind in others)]
            names = ["f16", *(kind.name for kind in others)]
            written = set(files) if kept else set(files[1:])
            for path, kind_name in zip(files, names, strict=True):
                if path in written:
                    self._wrote("gguf", path, path.stat().st_size, {"type": kind_name}, key=kind_name)
            if self.section.smoke_test:
                self._smoke(model_dir, files, written)

    @contextmanager
    def _f16(self, model_dir: Path, keep: bool) -> Iterator[tuple[Path, bool]]:
        """The f16 file, and whether it stays. One that was not asked for lies apart from an earlier one."""
        if keep:
            yield self._write_gguf(model_dir, "f16", self.out_dir), True
            return
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self.out_dir) as scratch:
            yield self._write_gguf(model_dir, "f16", Path(scratch)), False

    def _derive(self, model_dir: Path, f16: Path, kind: GGUFType) -> Path:
        if kind.direct:
            return self._write_gguf(model_dir, kind.name, self.out_dir)
        from .gguf.quantize import quantize

        report = quantize(
            f16, self._path(kind.name), kind.name, self._progress("export", f"GGUF {kind.name}")
        )
        if report.fallbacks:
            self.fallbacks[kind.name] = report.fallbacks
        return report.path

    def _write_gguf(self, model_dir: Path, dtype: Any, folder: Path) -> Path:
        from .gguf.convert import convert

        title, path = self.name or self._stem(), folder / self._path(dtype).name
        return convert(model_dir, path, dtype, self._progress("export", f"GGUF {dtype}"), name=title)

    def _smoke(self, model_dir: Path, files: list[Path], kept: set[Path]) -> None:
        self.emit(PhaseEvent(phase="smoke", detail="measuring the trained model", done=0, total=len(files)))
        with reference_of(model_dir, self.held_out, work_dir=self.out_dir) as baseline:
            for number, path in enumerate(files):
                self.emit(PhaseEvent(phase="smoke", detail=path.name, done=number, total=len(files)))
                verdict = prove(path, baseline, keep=path in kept)
                if path in kept:
                    self._proven(verdict, path)

    def _modelfile(self, model_dir: Path, kinds: list[GGUFType]) -> None:
        """For the smallest file that is not disproven."""
        failed = {Path(verdict.gguf) for verdict in self.result.verdicts if verdict.status == "fail"}
        usable = [kind for kind in kinds if self._path(kind.name) not in failed]
        if not usable:
            self.modelfile = ModelfileFacts(
                notes=("No Modelfile was written: no GGUF file passed its proof.",)
            )
            return
        chosen = self._path(min(usable, key=lambda kind: kind.bits_per_weight).name)
        self.modelfile = write_checked_modelfile(self.out_dir, chosen.name, model_dir)
        path = self.modelfile.path
        if path is not None:
            self._wrote("modelfile", path, path.stat().st_size, {"for": chosen.name})

    def _card(self) -> None:
        """About all that lies there, what earlier exports of the same weights wrote among it."""
        written = list(self.result.paths.values())
        beside = [
            one for one in list_artifacts(self.out_dir) if one.kind in ("adapter", "model", "merged", "gguf")
        ]
        earlier = [one for one in beside if one.path not in written]
        files = {one.path.name: one.bytes for one in beside} | {path.name: _bytes(path) for path in written}
        verdicts = [*self.result.verdicts, *(one.verdict for one in earlier if one.verdict is not None)]
        facts = replace(self.facts or CardFacts(), embedding=bool(self.remarks))
        card = write_card(self.out_dir, facts, verdicts, self.result.notes, files)
        self._wrote("card", card, card.stat().st_size)

    def _wrote(
        self, kind: str, path: Path, size: int, detail: dict[str, Any] | None = None, key: str | None = None
    ) -> None:
        self.result.paths[key or kind] = path
        self.emit(ExportEvent(kind=kind, path=str(path), bytes=size, detail=detail or {}))

    def _path(self, kind: str) -> Path:
        return self.out_dir / f"{self.name or self._stem()}-{kind}.gguf"

    def _stem(self) -> str:
        return clean_name(self.out_dir.resolve().name)

    def _progress(self, phase: Any, detail: str) -> Callable[[float, float], None]:
        """Phase events at whole percents, so that a model of thousands of tensors does not flood the log."""
        last = -1

        def tell(done: float, total: float) -> None:
            nonlocal last
            percent = int(100 * done / total) if total else 100
            if percent != last:
                last = percent
                self.emit(PhaseEvent(phase=phase, detail=detail, done=done, total=total))

        return tell


def export_run(context: RunContext) -> ExportResult:
    """Export a run's trained weights as its recipe asks; called by the job when training has ended.

    The result lies in the run's ``export/`` beside the adapter, and its verdict in the run's summary.
    """
    result = export_finished(context.dir, context.plan, context.summary, context.emit)
    context.summary["export"] = {kind: str(path) for kind, path in result.paths.items()}
    if result.status is not None:
        context.summary["verdict"] = result.status
    return result


def export_finished(
    run: RunDir,
    plan: Plan,
    summary: Mapping[str, Any],
    emit: Emit,
    section: ExportSection | None = None,
    out_dir: Path | None = None,
    leave: Callable[[], None] = lambda: None,
) -> ExportResult:
    """Export what a run trained, by default what its recipe asks for into its own folder.

    Exports of one run wait for each other; ``leave`` is called while this one waits, and may raise.

    Raises:
        WhetError: ``export.untrained`` while the run has no finished weights; those of :func:`export_model`.
    """
    from ..models.locate import resolve_model
    from .held_out import planned_rows

    recipe = plan.recipe
    section = section or recipe.export
    full = recipe.adapter.kind == "none"
    trained = trained_weights(run)
    base = resolve_model(recipe.model.name, recipe.model.revision, weights=not full)
    facts = run_facts(run.id, plan, summary, trained)
    with _alone(run, emit, leave):
        return export_model(
            trained,
            None if full else base,
            out_dir or run.export,
            section,
            emit,
            planned_rows(plan, base) if section.gguf and section.smoke_test else None,
            name=recipe.name or clean_name(Path(recipe.model.name).name),
            trained_precision=plan.resolved.base_precision,
            facts=facts,
        )


@contextmanager
def _alone(run: RunDir, emit: Emit, leave: Callable[[], None]) -> Iterator[None]:
    """Two exports of one run would write the same files; what a killed one left is swept up."""
    lock = locks.try_hold(run.export_lock)
    if lock is None:
        emit(PhaseEvent(phase="wait", detail=f"another export of {run.id} is being written"))
    while lock is None:
        leave()
        lock = locks.try_hold(run.export_lock, locks.PATIENCE)
    with lock:
        for scratch in run.export.glob(f"{SCRATCH}*"):
            shutil.rmtree(scratch)
        yield


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def clean_name(name: str) -> str:
    """``name`` as the beginning of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
