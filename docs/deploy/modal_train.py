"""One run of whet on Modal, up to eight GPUs of one machine, from the root of whet's checkout:

    modal volume create whet-home
    modal volume put whet-home recipe.yaml && modal volume put whet-home chats.jsonl
    modal run --detach docs/deploy/modal_train.py --note first.run --recipe recipe.yaml

The volume holds recipe, data and runs. A preempted or timed-out call is tried again and goes on from the last
checkpoint. `modal volume get whet-home runs/ID/export` brings the files home.
"""

import subprocess
import sys
import threading

import modal

HOME = "/home/whet"
GPU = "H100:1"
HOURS = 24  # Modal's limit for one attempt
COMMIT_SECONDS = 300
GRACE_SECONDS = 25  # of the 30 that Modal leaves an interrupted container
START_AGAIN = 5  # whet's exit code of a run that was stopped or interrupted

volume = modal.Volume.from_name("whet-home", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.12")
    .apt_install("gcc", "g++", "make", "git")
    .add_local_dir(".", "/opt/whet", copy=True, ignore=[".venv", ".git", "build"])
    .run_commands("cd /opt/whet && make setup GPU=1")
    .env({"PATH": "/opt/whet/.venv/bin:/usr/local/bin:/usr/bin:/bin", "WHET_HOME": HOME})
    .workdir(HOME)
)
app = modal.App("whet", image=image)


@app.function(
    gpu=GPU,
    cpu=8.0,
    memory=64 * 1024,
    volumes={HOME: volume},
    timeout=HOURS * 3600,
    retries=modal.Retries(max_retries=10, initial_delay=1.0, backoff_coefficient=1.0),
    single_use_containers=True,
    # For models behind a licence: secrets=[modal.Secret.from_name("huggingface")]
)
def train(note: str, recipe: str, overrides: list[str]) -> int:
    """Start the run, or go on with it; returns whet's exit code."""
    words = ["/opt/whet/docs/deploy/whet-job.sh", f"{HOME}/{note}", f"{HOME}/{recipe}", *overrides]
    job = subprocess.Popen(words)
    ended = threading.Event()
    threading.Thread(target=_commit_now_and_then, args=(ended,), daemon=True).start()
    try:
        code = job.wait()
    except KeyboardInterrupt:  # the container is being taken away
        job.terminate()
        job.wait(GRACE_SECONDS)
        raise
    finally:
        ended.set()
        volume.commit()
    if code == START_AGAIN:
        raise RuntimeError("The run was interrupted.")  # tried again by `retries`
    return code


def _commit_now_and_then(ended: threading.Event) -> None:
    while not ended.wait(COMMIT_SECONDS):
        volume.commit()


@app.local_entrypoint()
def main(note: str, recipe: str, overrides: str = "") -> None:
    """Overrides are separated by blanks: "training.max_steps=200 export.gguf=[q8_0]"."""
    sys.exit(train.remote(note, recipe, overrides.split()))
