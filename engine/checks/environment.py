"""Environment: packages and their versions."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Fix
from ..hardware import Machine
from .registry import PlanFacts, check

TESTED = {
    "torch": ">=2.11,<2.15",
    "transformers": ">=5.17,<5.24",
    "trl": ">=1.15,<1.17",
    "peft": ">=0.21,<0.22",
    "accelerate": ">=1.15,<2",
    "datasets": ">=4.8,<6",
    "bitsandbytes": ">=0.50,<0.51",
    "tokenizers": ">=0.23,<0.24",
}
"""As in pyproject.toml (a test holds them together), so that a source checkout is checked too."""

OPTIONAL = {"bitsandbytes"}


@check("environment", "E01")
def versions(facts: PlanFacts) -> Iterator[Finding]:
    """Packages missing, or outside of the range whet was run with."""
    yield from version_findings(facts.machine)


def version_findings(machine: Machine) -> Iterator[Finding]:
    """E01 from the machine alone, so that `whet doctor` needs no recipe."""
    from packaging.specifiers import SpecifierSet

    installed = machine.versions
    missing = [name for name in TESTED if name not in installed and name not in OPTIONAL]
    if missing:
        yield Finding(
            id="E01",
            severity="error",
            title=f"Not installed: {', '.join(missing)}.",
            evidence={"missing": missing},
            fix=Fix(text="Install whet with its dependencies.", command="pip install whet"),
        )
    outside = {
        name: installed[name]
        for name, tested in TESTED.items()
        if name in installed and not SpecifierSet(tested).contains(installed[name], prereleases=True)
    }
    if outside:
        pins = " ".join(f"'{name}{TESTED[name]}'" for name in outside)
        yield Finding(
            id="E01",
            severity="warning",
            title="Outside of the tested versions: "
            + ", ".join(f"{n} {v}" for n, v in outside.items())
            + ".",
            evidence={"installed": outside, "tested": {name: TESTED[name] for name in outside}},
            fix=Fix(text="Install tested versions.", command=f"pip install {pins}"),
        )

    if not machine.gpus and "trl" in installed and not SpecifierSet(">=1.16").contains(installed["trl"]):
        yield Finding(
            id="E01",
            severity="error",
            title=f"TRL {installed['trl']} trains on a GPU only, and there is none.",
            evidence={"trl": installed["trl"], "gpus": 0},
            fix=Fix(text="Install a newer TRL.", command="pip install 'trl>=1.16,<1.17'"),
        )


@check("environment", "E02")
def bitsandbytes_missing(facts: PlanFacts) -> Iterator[Finding]:
    """nf4 and int8 need bitsandbytes; the 8-bit optimizer falls back, which is said when it was asked for."""
    if facts.bitsandbytes:
        return
    install = "pip install 'bitsandbytes>=0.50,<0.51'"
    if facts.resolved.base_precision in ("nf4", "int8"):
        yield Finding(
            id="E02",
            severity="error",
            title=f"model.precision={facts.resolved.base_precision} needs bitsandbytes; it is not installed.",
            evidence={"bitsandbytes": None},
            fix=Fix(text="Install it, or hold the weights in 16 bits.", command=install),
        )
    training = facts.recipe.training
    if training.optimizer != facts.resolved.optimizer and "optimizer" in training.model_fields_set:
        yield Finding(
            id="E02",
            severity="warning",
            title="training.optimizer=adamw_8bit needs bitsandbytes, which is not installed; adamw is used.",
            evidence={"asked": training.optimizer, "used": facts.resolved.optimizer},
            fix=Fix(
                text="Install it, or ask for adamw.", patch={"training.optimizer": "adamw"}, command=install
            ),
        )


@check("environment", "E02")
def torch_without_cuda(facts: PlanFacts) -> Iterator[Finding]:
    """A GPU that the installed torch cannot use."""
    torch = facts.machine.versions.get("torch", "")
    if facts.machine.gpus and torch.endswith("+cpu"):
        yield Finding(
            id="E02",
            severity="error",
            title=f"{facts.machine.gpus[0].name} is there, but torch {torch} was built without CUDA.",
            evidence={"torch": torch, "driver": facts.machine.gpus[0].driver},
            fix=Fix(text="Install a CUDA build of torch.", command="pip install --force-reinstall torch"),
        )
