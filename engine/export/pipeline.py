"""From trained weights to proven files: adapter -> merged -> GGUF -> quantised -> smoke test -> Modelfile ->
card.

One function for worker, command line and Python API. Imports torch when it merges or converts, not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.exported import ExportFacts, run_export_checks
from ..disk import export_bytes
from ..errors import WhetError
from ..models.facts import read_model_facts
from ..models.sentence_folder import is_embedding_model
from ..recipe import ExportSection
from ..runs import locks
from ..runs.context import Stopped
from ..runs.events import Event, ExportEvent, FindingEvent, PhaseEvent
from ..runs.failures import describe_failure
from ..runs.store import trained_weights
from .artifacts import list_artifacts
from .embedding_notes import embedding_notes
from .files import require_space, scratch_folder, sweep
from .gguf.types import GGUFType, check_types
from .importance_rows import Rows, check_importance, is_matrix, rows_of, training_rows
from .merge_proof import prove_merge
from .merge_report import MergeReport
from .model_card import CardFacts, run_facts, write_card
from .modelfile_check import ModelfileFacts, write_checked_modelfile
from .smoke import HeldOut, prove, reference_of
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
    own_rows: Callable[[], Rows] | None = None,
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
        own_rows: gives rows for an importance matrix that is asked for without naming any.

    Raises:
        WhetError: ``gguf.needs_importance_matrix`` and ``export.disk_full`` before anything is written; those
            of merging, conversion and quantisation, and ``run.disk_full``. A failed proof is in the
            result, not raised. Either way the findings are emitted.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    export = _Export(
        trained_dir, base_dir, out_dir, section, emit, held_out, name, trained_precision, facts, own_rows
    )
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
    own_rows: Callable[[], Rows] | None
    result: ExportResult = field(default_factory=ExportResult)
    merge: MergeReport | None = None
    fallbacks: dict[str, int] = field(default_factory=dict)
    modelfile: ModelfileFacts | None = None
    remarks: tuple[str, ...] = ()

    def run(self) -> ExportResult:
        kinds = check_types(self.section.gguf)
        sweep(self.out_dir)
        if kinds or self.section.merged:
            self._check(kinds)
            with scratch_folder(self.out_dir) as scratch, self._model(scratch) as model_dir:
                if is_embedding_model(model_dir):
                    self.remarks = embedding_notes(model_dir, kinds)
                if kinds and self.result.status != "fail":  # of a wrong merge nothing is made
                    self._gguf(model_dir, kinds, scratch)
                    self._modelfile(model_dir, kinds)
        self.tell()
        self._card()
        return self.result

    def _check(self, kinds: list[GGUFType]) -> None:
        """What can be known before the first byte is written.

        Raises WhetError ``gguf.needs_importance_matrix``, ``gguf.not_importance``, ``data.*``,
        ``export.no_base``, ``export.disk_full``.
        """
        check_importance(kinds, self.section.imatrix, self.own_rows is not None)
        merges = (self.trained_dir / "adapter_config.json").is_file()
        if merges and self.base_dir is None:
            raise WhetError(
                "export.no_base",
                f"{self.trained_dir} is an adapter, and its base model was not named.",
                "Name the 16-bit model it was trained on.",
            )
        whole = read_model_facts(self.base_dir if merges and self.base_dir else self.trained_dir)
        require_space(self.out_dir, sum(export_bytes(self.section, whole, merges=merges).values()))

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
    def _model(self, scratch: Path) -> Iterator[Path]:
        """The merged 16-bit model: kept when asked for, else in ``scratch`` while the context lasts."""
        if not (self.trained_dir / "adapter_config.json").is_file():
            yield self.trained_dir
            return
        assert self.base_dir is not None
        from .merging import merge

        keep = self.section.merged
        merged = (self.out_dir if keep else scratch) / "merged"
        self.emit(PhaseEvent(phase="merge", detail="adapter into base"))
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

    def _gguf(self, model_dir: Path, kinds: list[GGUFType], scratch: Path) -> None:
        """The 16-bit file first: it is what the others are made from and held against."""
        asked = {kind.name for kind in kinds}
        name, source = self._source(model_dir, asked, scratch)
        made = {name: source}
        if name in asked:
            self._wrote_gguf(name, source)
        matrix = self._importance(model_dir, source, kinds, scratch)
        for kind in kinds:
            if kind.name not in made:
                made[kind.name] = self._derive(model_dir, source, kind, matrix)
                self._wrote_gguf(kind.name, made[kind.name])
        if self.section.smoke_test:
            self._smoke(model_dir, list(made.values()), {made[kind.name] for kind in kinds}, scratch)

    def _source(self, model_dir: Path, asked: set[str], scratch: Path) -> tuple[str, Path]:
        """Type and place of the file the others are quantised from: f16, or bf16 where f16 cannot hold the
        weights. One that was not asked for is scratch."""
        folder = self.out_dir if "f16" in asked else scratch
        try:
            return "f16", self._write_gguf(model_dir, "f16", folder)
        except WhetError as error:
            if error.code != "gguf.f16_overflow" or "f16" in asked:
                raise
        return "bf16", self._write_gguf(model_dir, "bf16", self.out_dir if "bf16" in asked else scratch)

    def _importance(self, model_dir: Path, source: Path, kinds: list[GGUFType], scratch: Path) -> Path | None:
        """The importance matrix, where one is asked for or needed."""
        given = self.section.imatrix
        if given is None and not any(kind.needs_importance for kind in kinds):
            return None
        if given is not None and is_matrix(given):
            return Path(given)
        from .gguf.importance import measure

        rows, origin = rows_of(given, model_dir, self.own_rows)
        tell = self._progress("export", "importance matrix")
        return measure(model_dir, source, rows, scratch / "imatrix.gguf", origin, tell)

    def _derive(self, model_dir: Path, source: Path, kind: GGUFType, matrix: Path | None) -> Path:
        if kind.direct:
            return self._write_gguf(model_dir, kind.name, self.out_dir)
        from .gguf.quantize import quantize

        report = quantize(
            source,
            self._path(kind.name),
            kind.name,
            self._progress("export", f"GGUF {kind.name}"),
            # Without the wish, a type's bytes do not depend on which others are made beside it.
            importance=matrix if kind.needs_importance or self.section.imatrix else None,
        )
        if report.fallbacks:
            self.fallbacks[kind.name] = report.fallbacks
        return report.path

    def _write_gguf(self, model_dir: Path, dtype: Any, folder: Path) -> Path:
        from .gguf.convert import convert

        title, path = self.name or self._stem(), folder / self._path(dtype).name
        return convert(model_dir, path, dtype, self._progress("export", f"GGUF {dtype}"), name=title)

    def _smoke(self, model_dir: Path, files: list[Path], kept: set[Path], scratch: Path) -> None:
        self.emit(PhaseEvent(phase="smoke", detail="measuring the trained model", done=0, total=len(files)))
        with reference_of(model_dir, self.held_out, work_dir=scratch) as baseline:
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

    def _wrote_gguf(self, kind: str, path: Path) -> None:
        self._wrote("gguf", path, path.stat().st_size, {"type": kind}, key=kind)

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
            own_rows=lambda: training_rows(plan, base),
        )


@contextmanager
def _alone(run: RunDir, emit: Emit, leave: Callable[[], None]) -> Iterator[None]:
    """Two exports of one run would write the same files."""
    lock = locks.try_hold(run.export_lock)
    if lock is None:
        emit(PhaseEvent(phase="wait", detail=f"another export of {run.id} is being written"))
    while lock is None:
        leave()
        lock = locks.try_hold(run.export_lock, locks.PATIENCE)
    with lock:
        yield


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def clean_name(name: str) -> str:
    """``name`` as the beginning of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
