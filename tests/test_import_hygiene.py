"""What may be loaded when: the light modules load no torch, and the command line loads no TUI."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "llama_cpp"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after running ``code`` in a fresh interpreter."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module",
    [
        "whet.engine",
        "whet.engine.api",
        "whet.engine.recipe",
        "whet.engine.plan",
        "whet.engine.kernel_report",
        "whet.engine.doctor",
        "whet.engine.doctor_bundle",
        "whet.engine.downloads",
        "whet.engine.surroundings",
        "whet.engine.runs.supervisor",
        "whet.tui.cli",
        "whet.tui.commands.train",
        "whet.tui.commands.look",
        "whet.tui.commands.ship",
        "whet.tui.commands.runs",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


def test_the_command_line_does_not_load_the_tui() -> None:
    loaded = loaded_by("import whet.tui.cli, whet.tui.commands.train, whet.tui.commands.ship")
    assert "textual" not in loaded and "click" in loaded


def test_kernels_load_torch_and_none_of_the_libraries_above() -> None:
    loaded = loaded_by("import whet.kernels.registry, whet.kernels.parity, whet.kernels.speed")
    assert loaded & HEAVY == {"torch"} and "triton" in loaded


def test_the_python_api_is_there_and_lazy() -> None:
    loaded = loaded_by("import whet.engine; assert 'FastLanguageModel' in dir(whet.engine)")
    assert not loaded & HEAVY
    with pytest.raises(AttributeError, match="no_such_name"):
        import whet.engine

        _ = whet.engine.no_such_name
