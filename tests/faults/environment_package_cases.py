"""Broken set-ups of the environment phase: packages and their native libraries."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from faults.harness import Fault, Looked
from support.broken_models import setup
from support.fake_surroundings import (
    after,
    command_of,
    environ,
    gpu,
    look_at,
    versions,
)
from support.plan_inputs import machine

from whet.engine import hardware
from whet.engine.findings import Finding
from whet.engine.methods.optimizers import usable_optimizer
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched
from whet.engine.surroundings import probes
from whet.engine.surroundings.facts import Packages, Surroundings
from whet.engine.surroundings.packages import bitsandbytes_cuda, package_folder, read_packages

HERE = machine(versions=versions())
WITH_GPU = machine(gpu(), versions=versions())

# --- E01: versions, imports


def shadowed(folder: Path, name: str, version: str) -> Looked:
    """A package of an earlier installation lies before the right one on Python's path."""

    def look() -> list[Finding]:
        sys.path.insert(0, str(folder))
        hardware._versions.cache_clear()
        try:
            return look_at(Surroundings(), hardware.inspect_machine().model_copy(update={"gpus": []}))
        finally:
            sys.path.remove(str(folder))
            hardware._versions.cache_clear()

    def mend(finding: Finding) -> Looked:
        for word in shlex.split(command_of(finding)):
            package, pinned, exact = word.partition("==")
            if pinned:  # what pip would do
                for old in folder.glob(f"{package}-*.dist-info"):
                    shutil.rmtree(old)
                dist_info(folder, package, exact)
        return Looked(look())

    dist_info(folder, name, version)
    return Looked(look(), mend)


def dist_info(folder: Path, name: str, version: str) -> None:
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def does_not_import(folder: Path, name: str, source: str) -> Looked:
    """A package that is there, and breaks when it is imported."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(source, encoding="utf-8")

    def look() -> list[Finding]:
        with environ(PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}"):
            return look_at(Surroundings(imports=probes.try_imports([name])), HERE)

    def mend(finding: Finding) -> Looked:
        assert f"'{name}==" in command_of(finding)
        shutil.rmtree(package)  # pip puts the right files there
        return Looked(look())

    return Looked(look(), mend)


# --- E02: bitsandbytes, CUDA

RUNTIME = "libcudart.so.97"  # of no CUDA that a machine could have
MISSING_CUDA = "int cudaMalloc(void); int get_context(void) { return cudaMalloc(); }"


def override(folder: Path, value: str) -> Looked:
    """BNB_CUDA_VERSION names a library that bitsandbytes does not bring."""

    def look(environment: dict[str, str]) -> list[Finding]:
        with environ(BNB_CUDA_VERSION=environment.get("BNB_CUDA_VERSION")):
            packages = read_packages().model_copy(update={"torch_cuda": "13.0"})
            return look_at(Surroundings(packages=packages), WITH_GPU)

    return Looked(
        look({"BNB_CUDA_VERSION": value}),
        lambda finding: Looked(look(after(command_of(finding), {"BNB_CUDA_VERSION": value}))),
    )


def no_library(folder: Path) -> Looked:
    """torch for a CUDA that the installed bitsandbytes knows nothing of."""

    def look() -> list[Finding]:
        packages = Packages(torch_cuda="13.0", bitsandbytes_cuda=bitsandbytes_cuda(folder))
        return look_at(Surroundings(packages=packages), WITH_GPU)

    def mend(finding: Finding) -> Looked:
        real = package_folder("bitsandbytes")
        assert real is not None and "bitsandbytes==" in command_of(finding)
        for library in real.glob("libbitsandbytes_cuda*.so"):
            (folder / library.name).touch()
        return Looked(look())

    for version in ("118", "124"):
        (folder / f"libbitsandbytes_cuda{version}.so").touch()
    return Looked(look(), mend)


def hidden_cuda(folder: Path) -> Looked:
    """A library linked against CUDA's, which lies where the loader does not look."""
    cuda = folder / "cuda" / "lib64"
    cuda.mkdir(parents=True)
    build = partial(subprocess.run, check=True, cwd=folder, capture_output=True)
    for name, text in (("cuda.c", "int cudaMalloc(void) { return 0; }"), ("bnb.c", MISSING_CUDA)):
        (folder / name).write_text(text)
    runtime = cuda / RUNTIME
    build(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{RUNTIME}", "-o", str(runtime), "cuda.c"])
    library = folder / "libbitsandbytes_cuda130.so"
    build(["gcc", "-shared", "-fPIC", "-o", str(library), "bnb.c", str(runtime)])

    def look(path: str | None) -> list[Finding]:
        with environ(LD_LIBRARY_PATH=path):
            load = probes.load_library(library, after=(), places=[f"{folder}/cuda*/lib64"])
        packages = Packages(torch_cuda="13.0", bitsandbytes_cuda=["13.0"])
        return look_at(Surroundings(packages=packages, bitsandbytes=load), WITH_GPU)

    def mend(finding: Finding) -> Looked:
        return Looked(look(after(command_of(finding), {})["LD_LIBRARY_PATH"]))

    return Looked(look(None), mend)


def old_driver(folder: Path) -> Looked:
    """torch was built for a newer CUDA than the driver knows."""

    def look(cuda: str) -> list[Finding]:
        packages = Packages(torch_cuda=cuda, bitsandbytes_cuda=["12.6", "13.0"])
        old = machine(gpu(driver="535.104.05"), versions=versions())
        return look_at(Surroundings(packages=packages), old)

    def mend(finding: Finding) -> Looked:
        wheels = re.search(r"/whl/cu(\d\d)(\d)$", command_of(finding))
        assert wheels is not None
        return Looked(look(f"{wheels[1]}.{wheels[2]}"))

    return Looked(look("13.0"), mend)


def without_bitsandbytes(folder: Path, setting: str, value: str, on_gpu: bool = False) -> Looked:
    """The recipe wants what only bitsandbytes can do, and it is not installed."""
    recipe = patched(setup(folder), {setting: value})
    there = [gpu()] if on_gpu else []

    def look(recipe: Recipe, **changes: Any) -> Looked:
        here = machine(*there, versions=versions(**changes))
        return Looked(make_plan(recipe, machine=here).findings, mend)

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        if finding.fix.patch:
            return look(patched(recipe, finding.fix.patch), bitsandbytes=None)
        assert "bitsandbytes==" in command_of(finding)
        return look(recipe)

    return look(recipe, bitsandbytes=None)


def optimizer_breaks(folder: Path) -> Looked:
    """bitsandbytes is installed, and its optimizers do not import."""
    import torch

    def look(optimizer: str) -> Looked:
        before = sys.modules.get("bitsandbytes.optim")
        sys.modules["bitsandbytes.optim"] = cast(Any, None)  # makes the import fail
        try:
            _, finding = usable_optimizer(optimizer, torch.device("cpu"))
        finally:
            del sys.modules["bitsandbytes.optim"]
            if before is not None:
                sys.modules["bitsandbytes.optim"] = before
        return Looked([finding] if finding is not None else [], mend)

    def mend(finding: Finding) -> Looked:
        assert finding.fix is not None
        return look(finding.fix.patch["training.optimizer"])

    return look("adamw_8bit")


# --- E05: llama.cpp

STAND_IN = """
import ctypes, os, shutil, signal, sys
__version__ = "0.3.36"
class _Params: ftype = nthread = 0
def llama_print_system_info(): return b"CPU : AVX2 = 1 | AMX_INT8 = {amx} | "
def llama_supports_gpu_offload(): return False
def llama_model_quantize_default_params():
    class Params(ctypes.Structure): _fields_ = [("ftype", ctypes.c_int), ("nthread", ctypes.c_int)]
    return Params()
def llama_model_quantize(source, out, params):
    shutil.copy(source, out)
    return 0
class Llama:
    def __init__(self, path, **options):
        {load}
    def eval(self, tokens):
        {run}
"""


def broken_llama(folder: Path, amx: int, load: str = "pass", run: str = "pass") -> Looked:
    """A build of llama.cpp that breaks where quantised weights are multiplied; the process really dies."""
    package = folder / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN.format(amx=amx, load=load, run=run))

    def look() -> list[Finding]:
        with environ(PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}"):
            return look_at(Surroundings(llama_cpp=probes.run_llama()), HERE)

    def mend(finding: Finding) -> Looked:
        assert "--no-binary llama-cpp-python" in command_of(finding)
        shutil.rmtree(package)  # the portable build takes its place
        return Looked(look())

    return Looked(look(), mend)


def case(id: str, name: str, fix: str, look: Callable[..., Looked], *arguments: Any, **options: Any) -> Fault:
    severity = options.pop("severity", "warning")
    return Fault(id, name, lambda folder: look(folder, *arguments, **options), fix, severity)


FAULTS: tuple[Fault, ...] = (
    case("E01", "an old trl before the right one", "trl==1.16.0", shadowed, "trl", "0.9.0"),
    case("E01", "a transformers of the future", "transformers==5.23.0", shadowed, "transformers", "6.1.0"),
    case("E01", "a TRL for GPUs alone, and none is there", "trl==1.16.0", shadowed, "trl", "1.15.0",
         severity="error"),
    case("E01", "a package that wants a name that is gone", "tokenizers==", does_not_import, "tokenizers",
         "from json import gone_since_long", severity="error"),
    case("E01", "a package that takes the process down", "tokenizers==", does_not_import, "tokenizers",
         "import os, signal; os.kill(os.getpid(), signal.SIGILL)", severity="error"),
    case("E02", "BNB_CUDA_VERSION of a library that is not there", "unset BNB_CUDA_VERSION", override, "127",
         severity="error"),
    case("E02", "torch for a CUDA that bitsandbytes lacks", "bitsandbytes==0.50.2", no_library,
         severity="error"),
    case("E02", "CUDA's runtime where the loader does not look", "LD_LIBRARY_PATH", hidden_cuda,
         severity="error"),
    case("E02", "4 bits without bitsandbytes", "bitsandbytes==", without_bitsandbytes, "model.precision",
         "nf4", on_gpu=True, severity="error"),
    Fault("E02", "an 8-bit optimizer without bitsandbytes",
          lambda folder: without_bitsandbytes(folder, "training.optimizer", "adamw_8bit"),
          {"training.optimizer": "adamw"}),
    Fault("E02", "8-bit optimizers that do not import", optimizer_breaks, {"training.optimizer": "adamw"},
          "note"),
    case("E02", "a driver older than torch's CUDA", "download.pytorch.org/whl/cu126", old_driver,
         severity="error"),
    case("E05", "AMX faults at the first product", "GGML_NATIVE=OFF", broken_llama, 1,
         run="os.kill(os.getpid(), signal.SIGILL)", severity="error"),
    case("E05", "a quantised file crashes the loader", "GGML_NATIVE=OFF", broken_llama, 0,
         load="ctypes.string_at(0)", severity="error"),
    case("E05", "products that are no numbers", "GGML_NATIVE=OFF", broken_llama, 0,
         load="import numpy; self.scores = numpy.full((64, 8), numpy.nan)", severity="error"),
)  # fmt: skip
