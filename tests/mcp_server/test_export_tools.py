"""Exports and proofs by tool call: started once, told at once where the same bytes were proven before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mcp import Client
from support.client_calls import made, refused, said
from support.exported import healthy_gguf, learnt_model
from support.fake_runs import SOURCE, write_job

from whet.engine import api
from whet.engine.export.verdict import Proof, Status, Verdict, fingerprint, save_verdict
from whet.engine.recipe import ExportSection
from whet.engine.runs import keys, locks, supervisor
from whet.engine.runs.jobs import ExportJob, SmokeJob
from whet.engine.runs.store import RunDir, RunStore
from whet.mcp_server.tools import export

pytestmark = pytest.mark.anyio
Connect = Callable[..., Client]

PROVE = """
from whet.engine.export.verdict import Proof, Verdict, fingerprint, save_verdict
gguf = context.dir.load_job().gguf
proof = Proof(name="logits", status="pass", summary="KL is 0.001 nat.")
save_verdict(Verdict.of([proof], gguf, fingerprint=fingerprint(gguf)), gguf)
"""


@pytest.fixture
def trained(home: Path, demo_plan: api.Plan) -> RunDir:
    run = RunStore().create(demo_plan, "test")
    (run.export / "adapter").mkdir()
    run.write_state(status="finished", launched=1.0)
    return run


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let a job that is started do this instead."""
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))

    def use(body: str) -> None:
        launch = partial(supervisor.launch, worker=write_job(tmp_path, body))
        monkeypatch.setattr("whet.engine.job_starts.start_once", partial(keys.start_once, launch=launch))

    return use


def gguf(path: Path, status: Status | None) -> Path:
    path.write_bytes(b"GGUF" + bytes(1000))
    if status is not None:
        proof = Proof(
            name="logits", status=status, summary="KL is 0.9 nat.", fix="" if status == "pass" else "Do."
        )
        save_verdict(Verdict.of([proof], path, fingerprint=fingerprint(path)), path)
    return path


async def test_an_export_is_a_job_started_once(
    connect: Connect, trained: RunDir, stand_in: Callable[[str], None]
) -> None:
    stand_in("pass")
    async with connect() as client:
        start = partial(said, client, "export_start", run_id=trained.id, types=["Q4_K_M", "f16"], merged=True)
        first, again = await start(idempotency_key="k"), await start(idempotency_key="k")
        assert first["run_id"] == again["run_id"] and first["started_by"] == "mcp:tester"
        section = ExportSection(merged=True, gguf=["q4_k_m", "f16"])
        assert api.find(first["run_id"]).load_job() == ExportJob(parent=trained.id, section=section)
        seen = await made(client, first["next"][0])
        assert seen["status"] == "finished" and seen["next"][0] == f'gguf_smoke_test(run_id="{trained.id}")'
        other = await said(client, "export_start", run_id=trained.id)
        job = api.find(other["run_id"]).load_job()
        assert isinstance(job, ExportJob) and job.section is not None and job.section.gguf == ["q4_k_m"]
        await said(client, "job_wait", run_id=other["run_id"])
        words = await refused(client, "export_start", run_id=trained.id, types=["q4_km"])
        assert "q4_k_m" in words
        small = await said(client, "export_start", run_id=trained.id, types=["iq2_xs"], imatrix="rows")
        job = api.find(small["run_id"]).load_job()
        assert isinstance(job, ExportJob) and job.section is not None
        assert (job.section.gguf, job.section.imatrix) == (["iq2_xs"], "rows")
        await said(client, "job_wait", run_id=small["run_id"])
        (trained.export / "adapter").rmdir()
        assert "[export.untrained]" in await refused(client, "export_start", run_id=trained.id)


async def test_a_proof_of_these_bytes_is_told_at_once(connect: Connect, trained: RunDir) -> None:
    gguf(trained.export / "m-f16.gguf", "pass")
    bad = gguf(trained.export / "m-q4_k_m.gguf", "fail")
    async with connect() as client:
        seen = await said(client, "gguf_smoke_test", run_id=trained.id)
        assert (seen["verdict"], seen["file"], seen["job_id"]) == ("fail", str(bad), None)
        assert seen["files"] == {"m-f16.gguf": "pass", "m-q4_k_m.gguf": "fail"}
        assert seen["steps"] == [
            {"name": "logits", "status": "fail", "summary": "KL is 0.9 nat.", "fix": "Do."}
        ]
        assert "must not be shipped" in seen["warnings"][0]
        assert seen["next"][0] == f'run_diagnose(run_id="{trained.id}")'
        one = await said(client, "gguf_smoke_test", gguf=str(trained.export / "m-f16.gguf"))
        assert one["verdict"] == "pass"
    assert [run.id for run in RunStore()] == [trained.id]


async def test_changed_bytes_are_proven_anew_once(
    connect: Connect, trained: RunDir, stand_in: Callable[[str], None]
) -> None:
    stand_in(PROVE)
    path = gguf(trained.export / "m-f16.gguf", "fail")
    path.write_bytes(b"GGUF" + bytes(999) + b"x")
    async with connect() as client:
        seen = await said(client, "gguf_smoke_test", run_id=trained.id)
        assert (seen["verdict"], seen["files"]) == ("pass", {"m-f16.gguf": "pass"})
        job = api.find(seen["job_id"])
        assert job.read_state().started_by == "mcp:tester"
        assert job.load_job() == SmokeJob(parent=trained.id, gguf=path, reference=trained.export / "adapter")
        assert (await said(client, "gguf_smoke_test", run_id=trained.id))["job_id"] is None


async def test_a_long_proof_is_joined_not_started_again(
    connect: Connect, trained: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf(trained.export / "m-f16.gguf", None)
    monkeypatch.setattr(export, "PROOF_SECONDS", 0.0)
    job = RunStore().create_job(
        SmokeJob(parent=trained.id, gguf=path, reference=trained.export / "adapter"), "someone"
    )
    with locks.hold(job.lock):
        job.write_state(status="running", launched=1.0, attempt=1)
        told: list[str | None] = []

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            told.append(message)

        async with connect() as client:
            answer = await client.call_tool("gguf_smoke_test", {"run_id": trained.id}, progress_callback=tell)
            seen = answer.structured_content
            assert seen is not None and (seen["verdict"], seen["job_id"]) == ("running", job.id)
            assert seen["next"][0] == f'job_wait(run_id="{job.id}", until="end")'
            assert told == ["running"]
    assert len(list(RunStore())) == 2


async def test_a_proof_that_cannot_be_made_says_why(
    connect: Connect, trained: RunDir, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("raise WhetError('smoke.reference', 'It does not load.')")
    loose = gguf(tmp_path / "loose.gguf", None)
    async with connect() as client:
        smoke = partial(refused, client, "gguf_smoke_test")
        assert "[smoke.no_gguf]" in await smoke(run_id=trained.id)
        assert "[smoke.what]" in await smoke()
        assert "[smoke.what]" in await smoke(run_id=trained.id, gguf="loose.gguf")
        assert "[path.outside]" in await smoke(gguf="/etc/passwd.gguf")
        assert "[smoke.no_gguf]" in await smoke(gguf="none.gguf")
        assert "[smoke.no_reference]" in await smoke(gguf=loose.name)
        assert "[smoke.no_reference]" in await smoke(gguf=loose.name, reference="none")
        assert "[path.outside]" in await smoke(gguf=loose.name, reference="/etc")
        (tmp_path / "model").mkdir()
        words = await smoke(gguf=loose.name, reference="model")
        assert words.startswith("[smoke.reference] It does not load.") and "run_diagnose" in words


@pytest.mark.parametrize("era", ["auto"])
async def test_a_real_file_is_proven_by_llama_cpp(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(healthy_gguf().read_bytes())
    async with connect(options={"root": learnt_model().parent}) as client:
        words = await refused(
            client, "gguf_smoke_test", gguf=str(tmp_path / "model.gguf"), reference="learnt"
        )
        assert "[path.outside]" in words
        seen = await said(client, "gguf_smoke_test", gguf=healthy_gguf().name, reference="learnt")
        while seen["verdict"] == "running":
            await made(client, seen["next"][0])
            seen = await made(client, seen["next"][1])
    assert seen["verdict"] == "pass" and {"vocabulary", "template", "logits"} <= {
        one["name"] for one in seen["steps"]
    }
