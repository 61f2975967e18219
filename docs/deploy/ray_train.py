"""One run of whet on the machines of a Ray cluster: `python ray_train.py NOTE RECIPE [KEY=VALUE]...`.

Ray gives each machine one worker with all of its GPUs; there whet starts a process for each. NOTE, WHET_HOME
and whet itself lie on storage that all machines see. A lost or preempted machine ends the attempt, Ray starts
another, and the run goes on from its last checkpoint.
"""

import os
import subprocess
import sys
from pathlib import Path

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

MACHINES = 2
GPUS = 8
CPUS = 32
WHET = Path("/shared/whet")
HOME = Path("/shared/whet-home")
START_AGAIN = 5  # whet's exit code of a run that was stopped or interrupted


def train(config: dict) -> None:
    """On each machine: do this machine's part of the run to its end."""
    context = ray.train.get_context()
    own = {
        "PATH": f"{WHET}/.venv/bin:{os.environ['PATH']}",
        "WHET_HOME": str(HOME),
        "NODES": str(context.get_world_size()),
        "NODE_RANK": str(context.get_world_rank()),
        "GPUS": str(GPUS),
        # Ray set MASTER_ADDR for a process group of its own, which holds MASTER_PORT.
        "MASTER_PORT": "29511",
    }
    job = [str(WHET / "docs" / "deploy" / "whet-job.sh"), *config["words"]]
    code = subprocess.run(job, env=os.environ | own, check=False).returncode
    if code == START_AGAIN or code < 0:
        raise RuntimeError(f"The run was interrupted on machine {context.get_world_rank()} ({code}).")
    ray.train.report({"exit": code})


def main() -> None:
    """Train, and leave with whet's exit code."""
    trainer = TorchTrainer(
        train,
        train_loop_config={"words": sys.argv[1:]},
        torch_config=TorchConfig(backend="gloo"),  # whet's own processes use NCCL
        scaling_config=ScalingConfig(
            num_workers=MACHINES,
            use_gpu=True,
            resources_per_worker={"GPU": GPUS, "CPU": CPUS},
            placement_strategy="STRICT_SPREAD",
        ),
        run_config=RunConfig(
            name="whet", storage_path=str(HOME / "ray"), failure_config=FailureConfig(max_failures=100)
        ),
    )
    result = trainer.fit()
    sys.exit(int((result.metrics or {"exit": 1})["exit"]))


if __name__ == "__main__":
    main()
