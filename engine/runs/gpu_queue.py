"""One run a GPU: take free ones, or wait in order of start. The queue is the run directories themselves.

A run that needs several takes all or none, so two of them never hold what the other waits for; and since a
later run never takes what an earlier one waits for, it gets them all in the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from ..errors import WhetError
from ..hardware import inspect_machine
from ..parallel.strategy import alike_gpus
from ..parallel.topology import ranks_of
from . import locks
from .context import RunContext, Stopped
from .events import PhaseEvent
from .store import RunDir, RunStore

POLL_SECONDS = 0.5


def planned_gpus(context: RunContext) -> list[str]:
    """NVML uuids of the GPUs the plan may run on, any of which will do; none for a CPU run.

    Ranks share their work equally, so they run on GPUs of one kind. Raises WhetError ``run.no_gpu`` when the
    plan counts on GPUs that are not there now.
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
    ranks = 1 if foreign else planned_ranks(context)
    gpus = machine.gpus if ranks == 1 else alike_gpus(machine.gpus)
    if not foreign and len(gpus) < ranks:
        raise WhetError(
            "run.no_gpu",
            f"The plan counts on {ranks} GPUs of one kind, and {len(gpus)} are visible.",
            f"Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or go on with fewer: `whet resume "
            f"{context.dir.id} hardware.gpus=auto`. On several machines torchrun or srun starts the ranks.",
        )
    return [gpu.uuid for gpu in gpus]


def planned_ranks(context: RunContext) -> int:
    """Processes of the run; one of a job on what a run trained, and of a run that has only its export left,
    unless somebody else started its ranks."""
    run = context.dir
    if run.job.exists() or not run.plan.exists():
        return 1
    trained = run.export / ("model" if context.recipe.adapter.kind == "none" else "adapter")
    return 1 if context.topology.alone and trained.is_dir() else ranks_of(context.plan)


def take_gpus(context: RunContext, candidates: Sequence[str], count: int = 1) -> list[str]:
    """Hold ``count`` of ``candidates`` for the life of this process and make them the only GPUs CUDA sees.

    Waits while too few are free, or while a run that started earlier waits for one of them. Returns their
    names in the order of ``candidates``, rank by rank; none when there are no candidates. Raises Stopped on a
    stop request.
    """
    if not candidates:
        return []
    said = ""
    while True:
        if context.stop_requested():
            raise Stopped
        ahead = _ahead_of(context.dir, candidates)
        if not ahead:
            taken = _take(candidates, count)
            for lock in taken.values():
                lock.write_holder(context.dir.id)
            if taken:
                _held.update(taken)
                _show_only(list(taken))
                return list(taken)
        said = _say_waiting(context, candidates, ahead, said)
        time.sleep(POLL_SECONDS)


def keep_first_gpu() -> None:
    """Let go of all but rank 0's GPU, which is then the only one that processes started from here see.

    Only for when no other rank lives: its memory would still be on what it held.
    """
    names = list(_held)
    if len(names) > 1:
        _show_only(names[:1])
    for name in names[1:]:
        _held.pop(name).release()


_held: dict[str, locks.Lock] = {}
"""For the life of this process, by GPU, rank by rank."""


def _take(candidates: Sequence[str], count: int) -> dict[str, locks.Lock]:
    """All of ``count`` locks, or none."""
    taken: dict[str, locks.Lock] = {}
    for name in candidates:
        lock = locks.try_hold(locks.gpu_lock(name))
        if lock is not None:
            taken[name] = lock
        if len(taken) == count:
            return taken
    for lock in taken.values():
        lock.release()
    return {}


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


def _show_only(names: Sequence[str]) -> None:
    """CUDA numbers devices by speed and NVML by bus, so the lock and the device agree only by NVML's uuid."""
    if all(name.startswith(("GPU-", "MIG-")) for name in names):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
