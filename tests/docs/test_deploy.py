"""The files of docs/deploy parse, have fields that their tools read, and say to whet what it understands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from whet.engine.recipe import Recipe
from whet.engine.recipe_files import parse_override, patched, shipped
from whet.engine.runs import worker
from whet.tui.cli import cli

FOLDER = Path(__file__).parents[2] / "docs" / "deploy"
SHELL = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
PYTHON = sorted(FOLDER.glob("*.py"))
SBATCH = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "signal",
    "requeue", "open-mode", "output", "exclusive",
}  # fmt: skip
SKY = {
    "name",
    "workdir",
    "num_nodes",
    "resources",
    "envs",
    "secrets",
    "file_mounts",
    "volumes",
    "setup",
    "run",
}
SKY_RESOURCES = {"infra", "accelerators", "use_spot", "disk_size", "network_tier", "job_recovery"}
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{8}|AKIA[A-Z0-9]{8}|ak-[A-Za-z0-9]{8}|(token|password|key) *[:=] *['\"]\w{12}"
)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def every_file() -> list[Path]:
    return sorted(path for path in FOLDER.iterdir() if path.is_file())


def scripts() -> list[str]:
    """All shell text: the scripts, and those inside of YAML, Dockerfile and the page."""
    sky = [yaml.safe_load(text_of(path)) for path in FOLDER.glob("skypilot*.yaml")]
    job = yaml.safe_load(text_of(FOLDER / "kubernetes-trainjob.yaml"))
    page = re.findall(r"(?:^    .*\n)+", text_of(FOLDER / "README.md"), re.MULTILINE)
    return [
        *map(text_of, SHELL),
        *(one[part] for one in sky for part in ("setup", "run")),
        job["spec"]["trainer"]["command"][-1],
        *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in page),
    ]


def whet_calls() -> list[list[str]]:
    """The words behind each `whet VERB` of scripts and page, to the end of the command."""
    page = text_of(FOLDER / "README.md")
    found = [shlex.split(call) for call in re.findall(r"`whet ([^`]+)`", page)]
    for script in scripts():
        for line in script.splitlines():
            code = re.sub(r"(^|\s)#.*$", "", line)
            for call in re.finditer(r"(?:^|[\s(!|`])whet ([a-z].*)$", code):
                words = re.split(r"[|><;&)]|\d>", call[1])[0]
                found.append(shlex.split(words))
    return found


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_parses(path: Path) -> None:
    assert text_of(path).startswith("#!/bin/bash\n") and "set -u" in text_of(path)
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.splitlines()[0][:40])
def test_shell_inside_of_other_files_parses(script: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_reads_its_options(path: Path) -> None:
    lines = text_of(path).splitlines()
    first_command = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert all(lines.index(line) < first_command for line in options)  # sbatch reads no further
    named = {re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)[1] for line in options}  # type: ignore[index]
    assert named <= SBATCH and {"signal", "requeue", "open-mode", "time"} <= named


def test_whets_verbs_and_options_exist() -> None:
    calls = whet_calls()
    assert {call[0] for call in calls} >= {"train", "show", "attach", "resume"}
    for verb, *words in calls:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None, verb
        command.make_context("whet", [word for word in words if word], resilient_parsing=True)
        known = {option for parameter in command.params for option in parameter.opts}
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert set(options) <= known, (verb, options)


def test_settings_are_those_of_a_recipe() -> None:
    recipe = Recipe.model_validate({"name": "x", "model": {"name": "demo"}, "data": {"train": "demo"}})
    found = set(re.findall(r"\b((?:hardware|training|export)\.[a-z_]+)=?", "\n".join(scripts())))
    assert {"hardware.machines", "hardware.gpus"} <= found
    for key in found:
        section, name = key.split(".")
        assert name in type(getattr(recipe, section)).model_fields, key
    for call in whet_calls():
        for word in call:
            if re.fullmatch(r"[a-z]+\.[a-z_]+=[^$]+", word):
                patched(recipe, dict([parse_override(word)]))
    assert "lora-chat" in shipped() and worker.__name__ == "whet.engine.runs.worker"


def test_modules_that_are_started_exist() -> None:
    text = "\n".join(map(text_of, every_file()))
    assert set(re.findall(r"-m (whet\.[a-z_.]+[a-z])", text)) == {worker.__name__}


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_python_compiles(path: Path) -> None:
    tree = ast.parse(text_of(path))
    compile(tree, str(path), "exec")
    assert ast.get_docstring(tree)


def test_every_script_that_is_called_is_there() -> None:
    text = "\n".join(map(text_of, every_file()))
    called = set(re.findall(r"(whet-[a-z]+\.sh)", text))
    assert called == {path.name for path in FOLDER.glob("whet-*.sh")}
    assert all(path.stat().st_mode & 0o111 for path in FOLDER.glob("whet-*.sh"))


def test_the_trainjob_has_the_fields_of_its_schema() -> None:
    """trainer.kubeflow.org/v1alpha1 as of Trainer 2.2."""
    job: dict[str, Any] = yaml.safe_load(text_of(FOLDER / "kubernetes-trainjob.yaml"))
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert set(spec) <= {"runtimeRef", "initializer", "trainer", "runtimePatches", "suspend", "managedBy"}
    assert set(spec["runtimeRef"]) == {"apiGroup", "kind", "name"}
    trainer = spec["trainer"]
    assert set(trainer) <= {
        "image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode",
    }  # fmt: skip
    assert all(set(one) in ({"name", "value"}, {"name", "valueFrom"}) for one in trainer["env"])
    assert all(isinstance(one.get("value", ""), str) for one in trainer["env"])
    gpus = next(one["value"] for one in trainer["env"] if one["name"] == "GPUS")
    resources = trainer["resourcesPerNode"]
    assert {limits["nvidia.com/gpu"] for limits in resources.values()} == {gpus}
    (patch,) = spec["runtimePatches"]
    assert set(patch) == {"manager", "trainingRuntimeSpec"}
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert set(pod) <= {"volumes", "containers", "nodeSelector", "tolerations", "serviceAccountName"}
    (container,) = pod["containers"]
    assert set(container) <= {
        "name",
        "volumeMounts",
        "securityContext",
    }  # env of `node` belongs to the trainer
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("skypilot*.yaml")), ids=lambda path: path.name)
def test_skypilot_files_have_fields_that_it_reads(path: Path) -> None:
    task = yaml.safe_load(text_of(path))
    assert set(task) <= SKY and set(task["resources"]) <= SKY_RESOURCES
    recovery = task["resources"]["job_recovery"]
    assert set(recovery) <= {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    assert recovery["recover_on_exit_codes"] == [5]
    assert all(value is None for value in task["secrets"].values())
    assert all(
        set(mount) <= {"name", "source", "store", "mode"} for mount in task.get("file_mounts", {}).values()
    )


@pytest.mark.parametrize("path", every_file(), ids=lambda path: path.name)
def test_no_secret_is_in_a_file(path: Path) -> None:
    assert not SECRET.search(text_of(path))
