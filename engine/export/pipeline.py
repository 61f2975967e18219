"""From trained weights to proven files: adapter -> merged -> GGUF -> quantised -> smoke test -> Modelfile ->
card.

One function for worker, command line and Python API. Imports torch when it merges or converts, not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checks.exported import ExportFacts, run_export_checks
from ..errors import WhetError
from ..models.sentence_folder import is_embedding_model
from ..recipe import ExportSection
from ..runs.context import Stopped
from ..runs.events import Event, ExportEvent, FindingEvent, PhaseEvent
from ..runs.failures import describe_failure
from .artifacts import list_artifacts
from .embedding_notes import embedding_notes
from .files import scratch_folder, sweep
from .gguf.types import GGUFType, check_types
from .importance_rows import Rows, is_matrix, rows_of
from .merge_proof import prove_merge
from .merge_report import MergeReport
from .model_card import CardFacts, write_card
from .modelfile_check import ModelfileFacts, write_checked_modelfile
from .other_models import other_class, sees
from .refusing import is_adapter, refuse_early
from .smoke import HeldOut, prove, reference_of
from .targets.memory import block_bytes
from .targets.stage import Made, make_adapter_gguf, make_few_bits
from .targets.table import TARGETS
from .task_heads import head_task
from .verdict import RANK, Status, Verdict, verdict_path

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
        WhetError: ``gguf.needs_importance_matrix``, ``export.no_base``, ``export.adapter_gguf`` and
            ``export.disk_full`` before anything is written; those of merging, conversion and quantisation,
            and ``run.disk_full``. A failed proof is in the result, not raised. Either way the findings are
            emitted.
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
        kinds, asked = check_types(self.section.gguf), self.section
        sweep(self.out_dir)
        of_merged = bool(kinds) or asked.merged or asked.merged_4bit or asked.fp8
        if of_merged or asked.adapter_gguf:
            has_rows = self.own_rows is not None
            refuse_early(asked, self.trained_dir, self.base_dir, self.out_dir, own_rows=has_rows)
            with scratch_folder(self.out_dir) as scratch:
                if asked.adapter_gguf:
                    self._adapter_gguf(scratch)
                if of_merged:
                    with self._model(scratch) as model_dir:
                        self._of_merged(model_dir, kinds, scratch)
        self.tell()
        self._card()
        return self.result

    def _of_merged(self, model_dir: Path, kinds: list[GGUFType], scratch: Path) -> None:
        if is_embedding_model(model_dir) and head_task(model_dir) is None:
            self.remarks = embedding_notes(model_dir, kinds)
        if any(one.file_type == "merged" and one.status == "fail" for one in self.result.verdicts):
            return  # of a wrong merge nothing is made
        for made in make_few_bits(
            self.section, model_dir, self.out_dir, self.held_out, self._export_progress
        ):
            self._take(made)
        if kinds:
            self._gguf(model_dir, kinds, scratch)
            self._modelfile(model_dir, kinds)

    def _adapter_gguf(self, scratch: Path) -> None:
        assert self.base_dir is not None
        out = self.out_dir / TARGETS["adapter_gguf"].folder / f"{self.name or self._stem()}-lora.gguf"
        adapter, tell = self.trained_dir, self._export_progress
        self._take(make_adapter_gguf(self.section, adapter, self.base_dir, out, self.held_out, scratch, tell))

    def _take(self, made: Made) -> None:
        self._wrote(made.name, made.path, made.bytes, made.detail)
        if self.section.smoke_test and made.prove is not None:
            self.emit(PhaseEvent(phase="smoke", detail=made.path.name))
            self._proven(made.prove(), made.path)

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
        if not is_adapter(self.trained_dir):
            yield self.trained_dir
            return
        assert self.base_dir is not None
        task = head_task(self.trained_dir)
        if task is not None:
            yield self._merged_head(task)
            return
        if sees(self.trained_dir):
            yield self._merged_seeing()
            return
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
            memory=block_bytes(self.section.maximum_memory_usage),
        )
        if keep:
            self._wrote("merged", merged, report.bytes, {"dtype": report.dtype})
        if self.section.smoke_test:
            self._prove_merge(merged)
        yield merged

    def _merged_head(self, task: str) -> Path:
        """Classes or scores: written whole, and compared by its outputs."""
        assert self.base_dir is not None
        from .head_merge import merge_head

        merged = self.out_dir / "merged"
        self.emit(PhaseEvent(phase="merge", detail="adapter and head into base"))
        self.merge, verdict = merge_head(self.base_dir, self.trained_dir, merged, task)
        self._wrote("merged", merged, self.merge.bytes, {"dtype": self.merge.dtype})
        self._proven(verdict, merged)
        return merged

    def _merged_seeing(self) -> Path:
        """Models that see images: written whole, and compared by their answers to pictures."""
        assert self.base_dir is not None
        from .seeing_merge import merge_seeing

        merged = self.out_dir / "merged"
        self.emit(PhaseEvent(phase="merge", detail="adapter into base"))
        self.merge, verdict = merge_seeing(self.base_dir, self.trained_dir, merged)
        self._wrote("merged", merged, self.merge.bytes, {"dtype": self.merge.dtype})
        self._proven(verdict, merged)
        return merged

    def _prove_merge(self, merged: Path) -> None:
        assert self.base_dir is not None
        self.emit(PhaseEvent(phase="smoke", detail="merged against base and adapter"))
        share, name = self.section.maximum_memory_usage, other_class(self.trained_dir)
        if name is not None:
            from .weights_proof import prove_weights

            verdict = prove_weights(self.base_dir, self.trained_dir, merged, name)
        else:
            verdict = prove_merge(self.base_dir, self.trained_dir, merged, self.held_out, share=share)
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
        beside = [one for one in list_artifacts(self.out_dir) if one.kind not in ("modelfile", "card")]
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

    def _export_progress(self, detail: str) -> Callable[[float, float], None]:
        return self._progress("export", detail)

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


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def clean_name(name: str) -> str:
    """``name`` as the beginning of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
