"""Machines without fault: logins, GPUs, hubs, flags and scripts as most people have them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.environment_gpu_cases import compiled, installed_triton
from faults.environment_network_cases import NETWORK, SECRET
from faults.harness import Healthy, Looked
from support.fake_surroundings import FakeGPU, environ, gpu, look_at, nvml, versions, write_login
from support.mini_hub import MiniHub, serve
from support.plan_inputs import machine

from whet.engine import hardware
from whet.engine.checks.env_flags import seen_flags
from whet.engine.findings import Finding
from whet.engine.surroundings import probes
from whet.engine.surroundings.facts import Packages, Surroundings
from whet.engine.surroundings.gpu_health import read_gpu_health
from whet.engine.surroundings.gpu_links import read_links
from whet.engine.surroundings.hub import ask_hub, read_hub
from whet.engine.surroundings.kernel_caches import read_caches
from whet.engine.surroundings.session import read_encoding, read_session

Look = Callable[[Path], Looked]
GIB = 2**30
HERE = machine(versions=versions())


def login(environment: dict[str, str], **files: Any) -> Look:
    """As systemd, SSH and a terminal's helpers leave it."""

    def look(folder: Path) -> Looked:
        root = write_login(folder / "root", **files)
        session = read_session(root, environment, "anna")
        return Looked(look_at(Surroundings(session=session, encoding=read_encoding()), HERE))

    return look


def gpus(*there: FakeGPU, visible: str | None = None) -> Look:
    """Through NVML."""

    def look(folder: Path) -> Looked:
        with nvml(*there), environ(CUDA_VISIBLE_DEVICES=visible):
            found = hardware.inspect_machine().model_copy(update={"versions": versions()})
            health = read_gpu_health([one.uuid for one in found.gpus])
            flags = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
            links = read_links([one.uuid for one in found.gpus])
            around = Surroundings(gpus=health, flags=flags, links=links, shared_memory=32 * GIB)
            return Looked(look_at(around, found))

    return look


def this_process_computes(folder: Path) -> Looked:
    """A notebook that has loaded its model asks how the machine is."""
    return gpus(FakeGPU(processes=[(os.getpid(), 30 * GIB)], busy=98, free=49 * GIB))(folder)


def warm_cache(folder: Path) -> Looked:
    """Kernels of this GPU and this Triton."""
    place = shutil.copytree(compiled(), folder / "triton")
    here = machine(gpu(), versions=versions(triton=installed_triton()))
    with environ(TRITON_CACHE_DIR=str(place), TORCHINDUCTOR_CACHE_DIR=str(folder / "none")):
        return Looked(look_at(Surroundings(caches=read_caches(here, everything=True)), here))


def tested_versions(**changes: str) -> Look:
    """Another set within the tested ranges, with a driver that knows its CUDA."""

    def look(folder: Path) -> Looked:
        packages = Packages(torch_cuda="12.8", bitsandbytes_cuda=["12.6", "12.8", "13.0"])
        here = machine(gpu(driver="560.35.03"), versions=versions(**changes))
        return Looked(look_at(Surroundings(packages=packages), here))

    return look


def libraries(folder: Path) -> Looked:
    """What is installed here really imports, loads, and runs a quantised model."""
    found = Surroundings(imports=probes.try_imports(), llama_cpp=probes.run_llama())
    return Looked(look_at(found, hardware.inspect_machine().model_copy(update={"gpus": []})))


def hub(token: str | None, **variables: str) -> Look:
    """Reached, with or without a login; or offline, which is a state and no fault."""

    def look(folder: Path) -> Looked:
        mini = MiniHub({}, tokens={SECRET: "anna"})
        names = {**NETWORK, "HF_TOKEN": token, **variables, "HF_HOME": str(folder)}
        with serve(mini), environ(**names, HF_ENDPOINT=mini.url):
            asked = read_hub()
            reach = None if variables else ask_hub(asked)
            return Looked(look_at(Surroundings(hub=asked.model_copy(update={"reach": reach})), HERE))

    return look


def flags(on_gpu: bool = False, **variables: str) -> Look:
    def look(folder: Path) -> Looked:
        here = machine(gpu(), versions=versions()) if on_gpu else HERE
        return Looked(look_at(Surroundings(flags=seen_flags(variables)), here))

    return look


SCRIPT = """
import json
from whet.engine import FastLanguageModel, SFTConfig, SFTTrainer
from whet.engine.chat_templates import train_on_responses_only
from whet.engine.demo import MODEL_DIR, TRAIN_FILE
from datasets import Dataset
rows = [json.loads(line) for line in TRAIN_FILE.read_text(encoding="utf-8").splitlines()]
model, tokenizer = FastLanguageModel.from_pretrained(str(MODEL_DIR), max_seq_length=256)
model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=8)
if TEXTS:
    rows = [{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)} for row in rows]
settings = SFTConfig(
    max_steps=2, per_device_train_batch_size=2, output_dir="out", report_to="none", packing=PACKING
)
data = Dataset.from_list(rows)
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=settings)
if TEXTS:
    trainer = train_on_responses_only(trainer)
trainer.train()
"""


def script(texts: bool, packing: bool) -> Look:
    """The Python API in a process of its own; everything it says aloud counts."""

    def look(folder: Path) -> Looked:
        source = SCRIPT.replace("TEXTS", str(texts)).replace("PACKING", str(packing))
        paths = str(Path(__file__).parents[2] / "src")
        done = subprocess.run(
            [sys.executable, "-P", "-c", source],
            cwd=folder, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "WhetNote" in line]
        return Looked([Finding(id="script", severity="warning", title=line) for line in said])

    return look


SSH = {"SSH_CONNECTION": "10.0.0.2 50000 10.0.0.1 22"}
USUAL = {"HOME": "/home/anna", "LANG": "de_DE.UTF-8", "TERM": "xterm-256color", "HF_HOME": "/data/hf",
         "HF_TOKEN": SECRET, "OMP_NUM_THREADS": "8", "TOKENIZERS_PARALLELISM": "false",
         "LD_LIBRARY_PATH": "/usr/local/cuda/lib64", "WANDB_MODE": "offline"}  # fmt: skip
MACHINES = (
    Healthy("SSH, logind that lets processes be", login(SSH, kills="no")),
    Healthy("SSH, lingering, in the user's own systemd",
            login(SSH, scope="user@1000.service/app.slice/run-r1.scope", linger="anna")),
    Healthy("a container without systemd", login({}, scope="", kills="no")),
    Healthy("a free GPU", gpus(FakeGPU())),
    Healthy("two GPUs on NVLink", gpus(FakeGPU(nvlinks=18), FakeGPU(nvlinks=18))),
    Healthy("four GPUs of one socket", gpus(*(FakeGPU() for _ in range(4)))),
    Healthy("a desktop draws on the GPU", gpus(FakeGPU(processes=[(1, GIB // 3)], busy=4))),
    Healthy("the busy one of two GPUs is hidden", gpus(
        FakeGPU(processes=[(1, 30 * GIB)], busy=97, free=49 * GIB), FakeGPU(), visible="GPU-1")),
    Healthy("no GPU on purpose", gpus(FakeGPU(), visible="")),
    Healthy("an economical power limit", gpus(FakeGPU(limit=560_000))),
    Healthy("this process computes", this_process_computes),
    Healthy("kernels are compiled", warm_cache),
    Healthy("older versions, all tested", tested_versions(
        torch="2.11.0+cu128", transformers="5.17.0", trl="1.15.0", datasets="4.8.5", tokenizers="0.23.2")),
    Healthy("what is installed here", libraries),
    Healthy("the hub, logged in", hub(SECRET)),
    Healthy("the hub, nobody logged in", hub(None)),
    Healthy("offline on purpose", hub(None, HF_HUB_OFFLINE="1")),
    Healthy("a usual environment", flags(on_gpu=True, **USUAL)),
    Healthy("somebody who comes from Unsloth", flags(
        UNSLOTH_COMPILE_DISABLE="1", UNSLOTH_VLLM_STANDBY="1", UNSLOTH_STABLE_DOWNLOADS="1")),
    Healthy("a script: chats", script(texts=False, packing=False)),
    Healthy("a script: rendered texts, responses only", script(texts=True, packing=False)),
    Healthy("a script: packed", script(texts=False, packing=True)),
)  # fmt: skip
