"""Prompts: the flow as something a person picks from a menu."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .results import call

if TYPE_CHECKING:
    from .server import Server


def add_prompts(server: Server) -> None:
    """finetune, fix_run and ship_gguf."""

    @server.prompt(title="Fine-tune a model on my data")
    def finetune(data: str, model: str = "", goal: str = "quality") -> str:
        """From a data set to a proven GGUF. goal: quality, speed or memory."""
        chosen = call("plan_create", data=data, model=model or None, goal=goal)
        return (
            f"Fine-tune a language model on {data!r} with whet's tools.\n"
            f"1. {call('env_inspect')}, then {call('dataset_inspect', data=data)}. Tell me what is in the "
            "data and what is wrong with it.\n"
            f"2. {chosen}. Apply the fixes of findings that block; show me the configuration with its "
            "reasons, memory and time, and ask before you start.\n"
            "3. run_start, then job_wait until it ends; report loss and samples, base beside tuned.\n"
            "4. run_diagnose; then export_start with q4_k_m, and tell me the verdict of the proof."
        )

    @server.prompt(title="Find out what is wrong with a run, and mend it")
    def fix_run(run_id: str) -> str:
        """Reads a run's findings, explains them, and plans again with their fixes."""
        return (
            f"Find out why run {run_id!r} failed or learnt badly. Call "
            f"{call('run_diagnose', run_id=run_id)}, {call('run_get', run_id=run_id, view='metrics')} and "
            f"{call('run_get', run_id=run_id, view='logs')}. Explain each finding in one sentence, propose "
            "the plan_create with the fixes unchanged, and start it when I agree."
        )

    @server.prompt(title="Ship a run as a proven GGUF")
    def ship_gguf(run_id: str, types: str = "q4_k_m") -> str:
        """Export, prove, and say how to serve it. types: comma-separated."""
        wanted = [name.strip() for name in types.split(",")]
        return (
            f"Ship run {run_id!r}. Call {call('export_start', run_id=run_id, types=wanted)}, wait with "
            f"job_wait, then {call('gguf_smoke_test', run_id=run_id)}. Tell me the verdict proof by proof, "
            "where the files and the Modelfile lie and how large they are, and the command that serves them "
            "with Ollama. "
            "Do not call a file good whose verdict is fail."
        )
