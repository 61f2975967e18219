"""Shipping: write files of a run, and prove that they are the trained model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from anyio.to_thread import run_sync
from mcp.server.mcpserver import Context
from mcp.types import ToolAnnotations
from pydantic import BaseModel

from whet.engine import api

from ..chats import Chats
from ..options import Options
from ..results import Result, call
from ..root import Root
from ..server import who
from .common import ACTIVE, known_run, standing
from .toolsets import READS, WRITES, Toolset
from .train import StartResult, started
from .waiting import wait

PROOF_SECONDS = 45.0


class ProofOut(BaseModel):
    """One step of a smoke test; ``fix`` is empty for a pass."""

    name: str
    status: str
    summary: str
    fix: str


class SmokeResult(Result):
    """The verdict of one file, step by step, and of the run's others in a word."""

    verdict: str
    file: str
    steps: list[ProofOut]
    files: dict[str, str]
    job_id: str | None


class ExportTools(Toolset):
    """Tools that write and prove files of a trained run."""

    name: ClassVar[str] = "export"
    tools: ClassVar[dict[str, ToolAnnotations]] = {"export_start": WRITES, "gguf_smoke_test": READS}

    def __init__(self, options: Options, root: Root, chats: Chats) -> None:
        super().__init__(options, root)
        self.chats = chats

    def export_start(
        self,
        run_id: str,
        context: Context[Any, Any],
        types: list[str] = ["q4_k_m"],  # noqa: B006  (the agent sees the default in the schema)
        merged: bool = False,
        imatrix: str | None = None,
        idempotency_key: str | None = None,
    ) -> StartResult:
        """Start an export into the run's folder: `types` are GGUF's (q4_k_m, f16…), merged_4bit, fp8,
        adapter_gguf. Each is proven. `imatrix`: rows, or a file."""
        run = known_run(run_id)
        self.chats.close()
        begun = time.time()
        if imatrix not in (None, "rows"):
            imatrix = str(self.root.path(imatrix))
        job = api.start_export(
            run.id, types, merged, started_by=who(context), key=idempotency_key, imatrix=imatrix
        )
        return started(job, begun)

    async def gguf_smoke_test(
        self,
        context: Context[Any, Any],
        run_id: str | None = None,
        gguf: str | None = None,
        reference: str | None = None,
    ) -> SmokeResult:
        """Is a GGUF the trained model? Step by step, by llama.cpp against transformers. Give a run, or a file
        with the folder it was made from as `reference`; a proof of the same bytes is told at once."""
        files, folder = await run_sync(self._files, run_id, gguf, reference)
        unproven = [one for one in files if one.verdict is None]
        if not unproven:
            return _told(files, run_id, None)
        job = await run_sync(_job, unproven[0].path, folder, who(context))
        seen = await wait(job, "end", PROOF_SECONDS, 0, context)
        if seen.status in ACTIVE:
            again = call("gguf_smoke_test", run_id=run_id, gguf=gguf, reference=reference)
            return _under_way(files, unproven[0], job, standing(seen.status, seen.state), again)
        if seen.status != "finished":
            error = seen.state.error
            raise api.WhetError(
                error.code if error is not None else "smoke.ended",
                error.message if error is not None else f"The proof {job.id} was {seen.status}.",
                call("run_diagnose", run_id=job.id),
            )
        files, _ = await run_sync(self._files, run_id, gguf, reference)
        return _told(files, run_id, job.id)

    def _files(
        self, run_id: str | None, gguf: str | None, reference: str | None
    ) -> tuple[list[api.Artifact], Path]:
        """The GGUF files meant, and what they are to be proven against.

        Raises WhetError ``smoke.*``, ``path.*``, ``run.*``, ``export.untrained``.
        """
        if (run_id is None) == (gguf is None):
            raise api.WhetError(
                "smoke.what", "Give either run_id, or gguf with reference.", 'gguf_smoke_test(run_id="last")'
            )
        if gguf is not None:
            path = self.root.path(gguf)
            if path.suffix != ".gguf" or not path.is_file():
                raise api.WhetError(
                    "smoke.no_gguf", f"There is no GGUF file at {path}.", call("job_list", status="finished")
                )
            found = api.artifact(path)
            if reference is not None:
                return [found], self.root.model(reference)
            owner = next((run.id for run in api.runs() if Path(run.path) in path.parents), None)
            if owner is None:
                raise api.WhetError(
                    "smoke.no_reference",
                    f"{path.name} belongs to no run, so it is not known what it was made from.",
                    call("gguf_smoke_test", gguf=gguf, reference="<its model or adapter folder>"),
                )
            return [found], api.trained(owner)
        run = known_run(run_id or "")
        files = [one for one in api.artifacts(run.id) if one.kind == "gguf"]
        if not files:
            raise api.WhetError(
                "smoke.no_gguf", f"Run {run.id} has no GGUF file.", call("export_start", run_id=run.id)
            )
        return files, api.trained(run.id)


def _job(gguf: Path, reference: Path, started_by: str) -> api.RunDir:
    """The proof of this file that is under way, else a new one."""
    for one in api.runs():
        if one.status in ACTIVE and one.state.method == "smoke":
            under_way = api.find(one.id)
            job = under_way.load_job()
            if job is not None and job.action == "smoke" and job.gguf == gguf:
                return under_way
    return api.find(api.start_smoke(gguf, reference, started_by=started_by))


def _told(files: list[api.Artifact], run_id: str | None, job_id: str | None) -> SmokeResult:
    """The worst verdict decides, and is told step by step."""
    worst = max(files, key=lambda one: ("", "pass", "warn", "unproven", "fail").index(_word(one)))
    verdict = worst.verdict
    proofs = [] if verdict is None else verdict.proofs
    failed = [proof for proof in proofs if proof.status == "fail"]
    steps = f", {len(failed)} of {len(proofs)} steps failed" if failed else f", {len(proofs)} steps"
    left = [one for one in files if one.verdict is None]
    return SmokeResult(
        summary=f"{worst.path.name}: {_word(worst)}{steps}.",
        next=[
            *([call("run_diagnose", run_id=run_id)] if failed and run_id else []),
            *(call("gguf_smoke_test", gguf=str(one.path)) for one in left[:1]),
            call("model_chat", target=str(worst.path), prompt="Hello"),
        ],
        warnings=["A file whose verdict is fail must not be shipped."] if failed else [],
        verdict=_word(worst),
        file=str(worst.path),
        steps=[ProofOut(name=p.name, status=p.status, summary=p.summary, fix=p.fix) for p in proofs],
        files={one.path.name: _word(one) for one in files},
        job_id=job_id,
    )


def _under_way(
    files: list[api.Artifact], tested: api.Artifact, job: api.RunDir, words: str, again: str
) -> SmokeResult:
    return SmokeResult(
        summary=f"The proof of {tested.path.name} is {words}.",
        next=[call("job_wait", run_id=job.id, until="end"), again],
        verdict="running",
        file=str(tested.path),
        steps=[],
        files={one.path.name: _word(one) for one in files},
        job_id=job.id,
    )


def _word(one: api.Artifact) -> str:
    return "unproven" if one.verdict is None else one.verdict.status
