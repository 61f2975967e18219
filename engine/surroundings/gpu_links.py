"""How GPUs reach each other, through NVML, and how large the shared memory is that NCCL uses. Light."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from ..nvml import NoDriver, started_nvml
from .facts import GPULink

SHARED_MEMORY = Path("/dev/shm")
READ, NVLINK, OK = 0, 2, 0
"""NVML's indices of what a pair can do, and its word for yes."""
PATHS = {
    0: "on one board",
    10: "through one PCIe switch",
    20: "through several PCIe switches",
    30: "through one PCIe host bridge",
    40: "within one NUMA node",
    50: "across sockets",
}
"""By nvmlDeviceGetTopologyCommonAncestor."""


def read_links(visible: list[str]) -> list[GPULink]:
    """Each pair of the GPUs that a run may take; none without a driver."""
    if len(visible) < 2:
        return []
    try:
        with started_nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
            mine = [index for index, uuid in enumerate(uuids) if uuid in visible]
            return [
                _link(nvml, (one, other), (uuids[one], uuids[other]), (handles[one], handles[other]))
                for one, other in combinations(mine, 2)
            ]
    except NoDriver:
        return []  # the machine's own facts say so


def _link(nvml: Any, indices: tuple[int, int], uuids: tuple[str, str], pair: tuple[Any, Any]) -> GPULink:
    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        """None where these GPUs or their driver do not answer the question."""
        try:
            return function(*pair, *arguments)
        except nvml.NVMLError:
            return None

    direct = ask(nvml.nvmlDeviceGetP2PStatus, READ) == OK
    over_nvlink = direct and ask(nvml.nvmlDeviceGetP2PStatus, NVLINK) == OK
    path = PATHS.get(ask(nvml.nvmlDeviceGetTopologyCommonAncestor), "by a way NVML does not tell")
    return GPULink(
        first=uuids[0],
        second=uuids[1],
        indices=indices,
        kind="nvlink" if over_nvlink else "pcie" if direct else "host",
        path=path,
    )


def shared_memory_bytes(folder: Path = SHARED_MEMORY) -> int | None:
    """Size of the file system that processes share memory through; None where there is none."""
    if not folder.is_dir():
        return None
    stat = os.statvfs(folder)
    return stat.f_blocks * stat.f_frsize
