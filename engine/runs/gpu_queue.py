"""One run a GPU: take a free one, or wait in order of start. The queue is the run directories themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from ..errors import WhetError
from ..hardware import inspect_machine
from . import locks
from .context import RunContext, Stopped
from .events import PhaseEvent
from .store import RunDir, RunStore

POLL_SECONDS = 0.5


def planned_gpus(context: RunContext) -> list[str]:
    """NVML uuids of the GPUs the plan may run on, any one of which will do; none for a CPU run.

    Raises WhetError ``run.no_gpu`` when the plan counts on a GPU that is not there now.
    """
    foreign = not context.dir.plan.exists()  # a job on files of no run takes what there is
    if not foreign and context.plan.resolved.device == "cpu":
        return []
    machine = inspect_machine()
    if not machine.gpus and not foreign:
        raise WhetError(
            "run.no_gpu",
            f"The plan counts on a GPU and none is visible: {machine.gpu_note or 'NVML lists none'}.",
            "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, then `whet resume`; or start a new run on the CPU.",
        )
    return [gpu.uuid for gpu in machine.gpus]


def take_gpu(context: RunContext, candidates: Sequence[str]) -> locks.Lock | None:
    """Hold one of ``candidates`` for the life of this process and make it the only GPU that CUDA sees.

    Waits while all are taken, or while a run that started earlier waits for one of them. Returns None when
    there are no candidates. Raises Stopped on a stop request.
    """
    if not candidates:
        return None
    said = ""
    while True:
        if context.stop_requested():
            raise Stopped
        ahead = _ahead_of(context.dir, candidates)
        if not ahead:
            for name in candidates:
                lock = locks.try_hold(locks.gpu_lock(name))
                if lock is not None:
                    lock.write_holder(context.dir.id)
                    _show_only(name)
                    return lock
        said = _say_waiting(context, candidates, ahead, said)
        time.sleep(POLL_SECONDS)


def _ahead_of(run: RunDir, candidates: Sequence[str]) -> list[str]:
    """Ids of the living runs that started before ``run`` and wait for one of its GPUs, first come first."""
    mine = (run.read_state().launched or 0.0, run.id)
    ahead = []
    for summary in RunStore(run.path.parent).list():
        state = summary.state
        if summary.status == "waiting" and set(state.waiting_for) & set(candidates):
            ahead.append((state.launched or 0.0, summary.id))
    return [id for launched, id in sorted(ahead) if (launched, id) < mine]


def _say_waiting(context: RunContext, candidates: Sequence[str], ahead: list[str], said: str) -> str:
    """Tell state and events what is waited for, when that changed; returns what was said."""
    holders = {name: locks.holder(locks.gpu_lock(name)) for name in candidates}
    words = "; ".join(f"{name} is held by {who or 'another run'}" for name, who in holders.items())
    words += f"; {len(ahead)} ahead: {', '.join(ahead)}" if ahead else "; next in line"
    if words != said:
        behind = list(dict.fromkeys([*filter(None, holders.values()), *ahead]))
        context.update(status="waiting", waiting_for=list(candidates), behind=behind)
        context.emit(PhaseEvent(phase="wait", detail=words))
    return words


def _show_only(name: str) -> None:
    """CUDA numbers devices by speed and NVML by bus, so the lock and the device agree only by NVML's uuid."""
    if name.startswith(("GPU-", "MIG-")):
        os.environ["CUDA_VISIBLE_DEVICES"] = name
