"""Broken set-ups of reinforcement learning: rewards that tell no answer from another."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from faults.harness import Fault, Looked
from support.live_runs import attempt, findings_of
from support.scored import decided_model, prompts, recipe
from support.tiny_runs import create_run
from transformers import AutoTokenizer

from whet.engine.findings import Finding
from whet.engine.methods.grpo.job import GRPOTraining
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

FLAT = {"max_steps": 21, "learning_rate": 1e-3}


@lru_cache
def base() -> Path:
    return decided_model(Path(mkdtemp(prefix="whet-fault-reward-")) / "model")


def rewarded(folder: Path, method: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe of 128 prompts; answers of up to eight tokens."""
    return recipe(base(), folder, prompts(128), method=method, **{"training": FLAT, **sections})


def rewarded_run(wanted: Recipe) -> list[Finding]:
    run = create_run(wanted)
    attempt(run, method=GRPOTraining)
    return findings_of(run)


def never_right(folder: Path) -> Looked:
    """The model cannot hit the answer by chance; mended by a reward that sees differences."""
    vocabulary = AutoTokenizer.from_pretrained(base()).get_vocab()
    ends = {"model.end_tokens": sorted(token for token in vocabulary if not token.startswith("<|"))[::2]}
    wanted = patched(rewarded(folder, {"rewards": ["exact_answer"]}), ends)
    finer = {"rewards": ["exact_answer", f"{folder}/rewards.py:letters"]}
    return Looked(
        rewarded_run(wanted), lambda finding: Looked(rewarded_run(patched(rewarded(folder, finer), ends)))
    )


def too_short(folder: Path) -> Looked:
    """What is rewarded needs more room than answers have."""
    wanted = rewarded(folder, {"rewards": [f"{folder}/rewards.py:long"], "max_completion_length": 3})

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        return Looked(rewarded_run(patched(wanted, finding.fix.patch)))

    return Looked(rewarded_run(wanted), mend)


FAULTS = (
    Fault("T06", "no answer is ever right", never_right, "a finer reward"),
    Fault("T06", "answers end too early", too_short, {"method.max_completion_length": 6}),
)
