"""Data, templates, the machine: looked at, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.inspection import DataReport
    from ..data.preview import RowText
    from ..data.uses import Use
    from ..doctor import DoctorReport, FlagReport
    from ..hardware import Machine
    from ..kernel_report import KernelReport
    from ..recipe import Recipe
    from ..surroundings.facts import GPUHealth
    from ..template_view import TemplateView


def row_uses(values: dict[str, Any]) -> list[Use]:
    """Methods that read the rows of a recipe's data (``values``: its model and data sections), the likeliest
    first. Raises WhetError ``data.*`` where they cannot be read at all."""
    from ..data.uses import uses_of_recipe
    from ..recipe_files import build

    return uses_of_recipe(build(values, where="data"))


def with_method(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with the method that the rows look made for, where they name none."""
    from ..data.uses import likeliest

    if "method" in values:
        return values
    kind = likeliest(row_uses(values))
    return values if kind == "sft" else {**values, "method": {"kind": kind}}


def inspect_data(values: dict[str, Any], progress: Callable[[int], None] | None = None) -> DataReport:
    """Read every row of a recipe's data (``values``: its model and data sections) and report.

    Rows are read for the method that ``values`` names, else for the one that they look made for.
    """
    from ..data.token_store import prepare
    from ..models.locate import resolve_model
    from ..recipe_files import build

    wanted = build(with_method(values), where="data")
    return prepare(wanted, resolve_model(wanted.model.name, wanted.model.revision), progress).report


def data_suffixes() -> tuple[str, ...]:
    """Endings of the files that can be read as data, with their dot."""
    from ..data.readers import READERS

    return tuple(READERS)


def first_rows(wanted: Recipe, rows: int = 3) -> list[RowText]:
    """The first rows of a recipe's training data as they stand. Raises WhetError ``data.*``."""
    from ..data.preview import first_rows

    return first_rows(wanted, rows)


def template_view(
    values: dict[str, Any],
    rows: int = 2,
    gguf: Path | None = None,
    modelfile: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TemplateView:
    """Rows of a recipe's data (``values``: its model and data sections) as tokens, what the checks say of
    them and of the template, and how the model's own template, a GGUF and a Modelfile render the same.

    Rows that no template writes are shown as what goes into the model of each."""
    from ..recipe_files import build
    from ..template_view import template_view as view

    return view(build(with_method(values), where="template"), rows, gguf, modelfile, progress)


def chat_templates() -> dict[str, str]:
    """Name of each chat template whet knows, and whose it is."""
    from ..data.chat_templates import TEMPLATES

    return {name: info.family for name, info in TEMPLATES.items()}


def machine() -> Machine:
    """GPUs, CPU, memory and disk as they are now; quick."""
    from ..hardware import inspect_machine

    return inspect_machine()


def gpus() -> list[GPUHealth]:
    """Load, memory, heat and users of each GPU now, in a few milliseconds; none without a driver."""
    from ..hardware import inspect_machine
    from ..surroundings.gpu_health import read_gpu_health

    return read_gpu_health([gpu.uuid for gpu in inspect_machine().gpus])


def doctor(progress: Callable[[str], None] | None = None) -> DoctorReport:
    """What this machine has and what is wrong with it; ``progress`` hears what is being looked at."""
    from ..doctor import examine

    return examine(progress)


def environment_flags() -> list[FlagReport]:
    """Environment flags that are set and matter: who reads each, what it does now, what it contradicts."""
    from ..doctor import explain_environment

    return explain_environment()


def bundle(report: DoctorReport, target: Path) -> list[str]:
    """Write a report, flags, versions and the last runs to an archive without secrets; names inside it."""
    from ..doctor_bundle import write_bundle

    return write_bundle(report, target)


def check_kernels(interpret: bool = False, progress: Callable[[str], None] | None = None) -> KernelReport:
    """Parity and speed of the kernels here, and which back end each operation will use.

    ``interpret`` checks small cases on a machine without a GPU; ``progress`` hears what is being checked.
    """
    from ..kernel_report import check_kernels as check

    return check(interpret, progress)
