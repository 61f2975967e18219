"""The machine in one screen."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from whet.engine.api import DoctorReport

from .facts import facts
from .findings import findings_block
from .text import plain
from .units import size

Row = tuple[str, str | Text]
TELLING = ("AVX512_BF16", "AVX512", "AVX2", "AMX_INT8", "NEON", "SVE")
"""CPU instructions of a llama.cpp build worth a word."""
LINKS = {
    "nvlink": "by NVLink",
    "pcie": "by PCIe from one to the other",
    "host": "through host memory",
}
FOLDERS = {"home": "runs in", "hub": "downloads in", "temporary": "temporary files in"}


def machine_report(report: DoctorReport) -> RenderableType:
    """GPUs and who uses them, CPU, memory, disk, versions, native parts, the hub, the login, findings."""
    machine = report.machine
    rows: list[Row] = [
        *_gpus(report),
        ("CPU", f"{machine.cpu_name}, {machine.cpu_count} usable cores"),
        ("memory", f"{size(machine.ram_available)} of {size(machine.ram_total)} free"),
        ("disk", _disks(report)),
        ("versions", _versions(report)),
        ("bitsandbytes", _bitsandbytes(report)),
        ("Triton", _triton(report)),
        ("llama.cpp", _llama(report)),
        ("hub", _hub(report)),
        ("login", _login(report)),
    ]
    if report.surroundings.flags:
        rows.append(("flags", f"{', '.join(report.surroundings.flags)}  (whet doctor --env)"))
    found = findings_block(report.findings) if report.findings else Text("nothing wrong found", style="green")
    return Group(facts(rows), Text(), found)


def _gpus(report: DoctorReport) -> list[Row]:
    health = {one.uuid: one for one in report.surroundings.gpus}
    rows: list[Row] = []
    for gpu in report.machine.gpus:
        words = f"{gpu.name}, {size(gpu.memory_free)} of {size(gpu.memory_total)} free"
        one = health.get(gpu.uuid)
        if one is not None:
            words += "" if one.utilization is None else f", {one.utilization}% busy"
            words += "" if one.temperature is None else f", {one.temperature} °C"
            words += "" if one.power_limit is None else f", limit {one.power_limit:.0f} W"
        rows.append((f"GPU {gpu.index}", words))
        for user in one.processes if one is not None else []:
            taken = "" if user.memory is None else f", {size(user.memory)}"
            who = f"{user.name or 'a process'}, pid {user.pid}" + (f", {user.user}" if user.user else "")
            rows.append(("", f"used by {who}{taken}"))
    if not rows:
        return [("GPU", f"none ({report.machine.gpu_note or 'no NVIDIA device'})")]
    first = report.machine.gpus[0]
    cuda = report.surroundings.packages.torch_cuda
    capability = ".".join(map(str, first.capability))
    words = f"{first.driver}, capability {capability}, torch for " + (f"CUDA {cuda}" if cuda else "the CPU")
    return [*rows, *_between(report), ("driver", words)]


def _between(report: DoctorReport) -> list[Row]:
    """How GPUs reach each other, pairs of one kind together, and the shared memory they use."""
    around = report.surroundings
    if not around.links:
        return []
    pairs: dict[str, list[str]] = {}
    for link in around.links:
        way = LINKS[link.kind] + ("" if link.kind == "nvlink" else f", {link.path}")
        pairs.setdefault(way, []).append("{}-{}".format(*link.indices))
    words = [way if len(pairs) == 1 else f"{' '.join(some)} {way}" for way, some in pairs.items()]
    shared = "" if around.shared_memory is None else f"; /dev/shm {size(around.shared_memory)}"
    return [("between", plain("; ".join(words), 300) + shared)]


def _disks(report: DoctorReport) -> str:
    """Free space of each file system, by the folders on it."""
    there: dict[int, list[str]] = {}
    free = {disk.device: disk.free for disk in report.machine.disks}
    for disk in report.machine.disks:
        there.setdefault(disk.device, []).append(f"{FOLDERS[disk.folder]} {disk.path}")
    if not there:
        return f"{size(report.machine.disk_free)} free at {report.home}"
    return "; ".join(f"{size(free[device])} free: {', '.join(places)}" for device, places in there.items())


def _versions(report: DoctorReport) -> Text:
    """Each package; those outside of the tested range stand out, with the range."""
    wrong = {
        name
        for finding in report.findings
        if finding.id == "E01"
        for name in finding.evidence.get("installed", {})
        if isinstance(finding.evidence.get("installed"), dict)
    }
    text = Text(f"Python {report.python}")
    for name, version in report.machine.versions.items():
        text.append(", ")
        if name in wrong:
            text.append(f"{name} {version} (tested: {report.tested[name]})", style="yellow")
        else:
            text.append(f"{name} {version}")
    if not wrong:
        text.append("; all as tested", style="dim")
    return text


def _bitsandbytes(report: DoctorReport) -> str:
    version, load = report.machine.versions.get("bitsandbytes"), report.surroundings.bitsandbytes
    if version is None:
        return "not installed: no nf4, no int8"
    if load is None:
        return f"{version}, no library for this machine"
    return f"{version}, {load.library} {'does not load' if load.error else 'loads'}"


def _triton(report: DoctorReport) -> str:
    version = report.machine.versions.get("triton", "not installed")
    cache = next((one for one in report.surroundings.caches if one.name == "triton"), None)
    if cache is None or not cache.entries:
        return f"{version}, nothing compiled yet"
    words = f"{version}, {cache.entries:,} kernels compiled ({size(cache.size)} in {cache.path})"
    if report.machine.gpus:
        words += f"; {len(cache.kernels)} of whet's {cache.known} for this GPU"
    return words


def _llama(report: DoctorReport) -> str:
    smoke = report.surroundings.llama_cpp
    built = [name for name in TELLING if smoke is not None and name in smoke.features]
    return report.llama_cpp + (f", built for {', '.join(built)}" if built else "")


def _hub(report: DoctorReport) -> str:
    hub = report.surroundings.hub
    if hub is None or hub.reach is None:
        return "not asked"
    token = f"token from {hub.token_from}" if hub.token_from else "no token: public models only"
    if not hub.reach.reachable:
        return f"{hub.endpoint} not reached: {plain(hub.reach.why, 80)}; {token}"
    who = f"logged in as {hub.reach.user}, " if hub.reach.user else ""
    refused = " (not accepted)" if hub.reach.token_refused else ""
    return f"{hub.endpoint} reached, {who}{token}{refused}"


def _login(report: DoctorReport) -> str:
    session, encoding = report.surroundings.session, report.surroundings.encoding
    if session is None:
        return "unknown"
    words = [session.user, "over SSH" if session.ssh else "local"]
    words += [f"in {session.multiplexer}"] if session.multiplexer else []
    words += [
        "runs outlive it" if not any(f.id == "E06" for f in report.findings) else "runs may not outlive it"
    ]
    words += [f"text is {encoding.preferred}"] if encoding is not None else []
    return ", ".join(words)
