"""What lies around a run and can spoil it, as facts; the checks judge. Light.

``None`` always means: not looked at, or nothing there to look at. Sizes in bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Fact(BaseModel):
    """A frozen record; unknown fields are refused, so a cache of another version is not misread."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Packages(Fact):
    """What can be known of native libraries without loading one."""

    torch_cuda: str | None = Field(None, description="CUDA version torch was built for; None: a CPU build.")
    bitsandbytes_cuda: list[str] = Field([], description="CUDA versions bitsandbytes brings libraries for.")
    bitsandbytes_override: str | None = Field(None, description="BNB_CUDA_VERSION.")


class ImportSmoke(Fact):
    """All packages imported one after the other in a fresh process."""

    seconds: float
    failed: str | None = Field(None, description="The first package that did not import.")
    error: str = ""
    signal: str | None = Field(None, description="Set where the import took the process down.")


class LibraryLoad(Fact):
    """bitsandbytes' native library, loaded in a process that had loaded torch before."""

    library: str
    error: str = Field("", description="Empty where it loads; else what the loader said.")
    wants: str | None = Field(None, description="The library it needs and the loader did not find.")
    found_in: str | None = Field(None, description="A folder on this machine that holds that library.")


class LlamaSmoke(Fact):
    """llama.cpp loading and running a tiny quantised model."""

    status: Literal["works", "missing", "unloadable", "crashed", "failed"]
    version: str = ""
    step: str = Field("", description="What it was doing: import, model, load, decode.")
    signal: str | None = None
    log: str = Field("", description="Its last words.")
    features: list[str] = Field([], description="CPU instructions the build was compiled for.")
    gpu_offload: bool = False
    seconds: float = 0.0


class Reach(Fact):
    """One question to the hub."""

    reachable: bool
    why: str = Field("", description="Why it is not reached; empty where it is.")
    user: str | None = Field(None, description="Whom the token belongs to.")
    token_refused: bool = False


class Hub(Fact):
    """The model hub as this process would use it. Never holds a token."""

    endpoint: str
    offline_by: list[str] = Field([], description="Flags that forbid the network.")
    token_from: str | None = Field(None, description="Variable or file the token comes from.")
    second_token: str | None = Field(None, description="A file whose other token the variable hides.")
    cache: Path
    cache_free: int
    cache_writable: bool = True
    partial_files: int = 0
    partial_bytes: int = Field(0, description="Left by interrupted downloads; never used again.")
    reach: Reach | None = None


class KernelCache(Fact):
    """A folder of compiled kernels."""

    name: Literal["triton", "inductor"]
    path: Path
    writable: bool = True
    owner: str = ""
    entries: int = Field(0, description="Compiled kernels that were looked at.")
    more: bool = Field(False, description="There are more than were looked at.")
    size: int = 0
    usable: int = Field(0, description="Of these, for the installed Triton and the GPU at hand.")
    foreign: dict[str, int] = Field({}, description="The others, by what they were compiled for.")
    foreign_folders: list[str] = []
    broken: dict[str, str] = Field({}, description="Folder of an entry that cannot be used, and why.")
    kernels: list[str] = Field([], description="whet's kernels among the usable ones.")
    known: int = Field(0, description="How many kernels whet has.")


class Session(Fact):
    """What will happen to processes when the user logs out."""

    user: str
    ssh: bool = False
    multiplexer: str | None = Field(None, description="tmux or screen.")
    scope: Literal["login", "user", "other"] = Field(
        "other", description="Who owns this process: a login session, the user's systemd, anything else."
    )
    kills: bool | None = Field(
        None, description="logind ends this user's processes at logout; None: no logind."
    )
    lingering: bool = False
    hangup_ignored: bool = Field(False, description="Started by nohup.")
    home: Path = Field(description="whet's home.")
    home_filesystem: str = ""
    user_home_in_memory: bool = Field(False, description="The user's own home directory lies in memory.")


class GPUProcess(Fact):
    """Someone on a GPU."""

    pid: int
    name: str = ""
    user: str = ""
    memory: int | None = None


class GPUHealth(Fact):
    """What NVML tells of a GPU beyond its size; None where the GPU does not know."""

    index: int
    uuid: str
    name: str
    visible: bool = Field(True, description="By CUDA_VISIBLE_DEVICES.")
    memory_total: int = 0
    memory_free: int = 0
    processes: list[GPUProcess] = []
    holder: str = Field("", description="The whet run that holds it.")
    utilization: int | None = Field(None, description="Percent of the last interval.")
    temperature: int | None = None
    mig: bool = False
    slices: list[str] = Field([], description="UUIDs of its MIG slices.")
    ecc_uncorrected: int | None = Field(None, description="Uncorrected memory errors since the last reset.")
    rows_pending: bool = Field(False, description="Faulty memory rows wait for a reset to be replaced.")
    rows_failed: bool = Field(False, description="Faulty memory rows could not be replaced.")
    power_limit: float | None = Field(None, description="Watts.")
    power_default: float | None = None
    slowed_by: list[str] = Field([], description="Why its clocks are held down, beyond idling and its limit.")
    compute_mode: Literal["default", "exclusive", "prohibited"] = "default"


class GPULink(Fact):
    """How two GPUs reach each other."""

    first: str
    second: str
    """UUIDs."""
    indices: tuple[int, int]
    kind: Literal["nvlink", "pcie", "host"] = Field(
        description="NVLink, PCIe from one to the other, or through host memory only."
    )
    path: str = Field("", description="What lies between them, in words.")


class Encoding(Fact):
    """How this process reads and writes text where nothing else is said."""

    preferred: str
    stdout: str
    filesystem: str
    variables: dict[str, str] = {}


class Calibration(Fact):
    """Measured figures of the GPU that cannot be used."""

    path: Path
    problem: str


class Surroundings(Fact):
    """Everything but the machine itself (:class:`whet.engine.hardware.Machine`)."""

    packages: Packages = Packages()
    session: Session | None = None
    hub: Hub | None = None
    caches: list[KernelCache] = []
    gpus: list[GPUHealth] = Field([], description="All of the machine, hidden ones too.")
    links: list[GPULink] = Field([], description="Between each pair of the GPUs that a run may take.")
    shared_memory: int | None = Field(None, description="Bytes of /dev/shm, where several GPUs are there.")
    encoding: Encoding | None = None
    calibration: Calibration | None = None
    flags: dict[str, str] = Field({}, description="Environment flags that matter; secrets are not in it.")
    imports: ImportSmoke | None = None
    bitsandbytes: LibraryLoad | None = None
    llama_cpp: LlamaSmoke | None = None
