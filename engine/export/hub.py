"""Push an export to the hub: private by default, with its card, and no GGUF without its proof. Light.

The token is the hub's own: HF_TOKEN or the cache of `hf auth login`. None is taken as an argument or stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from ..errors import WhetError
from ..methods.damage import changed_weights
from ..redaction import Redactor
from ..runs.events import FindingEvent, last_attempt, read_events
from ..runs.store import RunDir
from ..settings import settings
from .artifacts import Artifact, list_artifacts
from .model_card import CardFacts, Part, card_text, check_card, facts_of, is_local
from .upload import Item, Tell, ignore_event, upload
from .verdict import Verdict, load_verdict, verdict_path

IGNORED = (
    "*.partial",
    "checkpoints/*",
    "optimizer.pt",
    "rng_state*.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
    "whet_merge.json",
)
"""What belongs to this machine: half a file, training's state (its arguments can hold a token), the mark of a
folder that may be replaced."""
CARD, ADAPTER = "README.md", "adapter_model.safetensors"
VERDICT = ".verdict.json"

FOLDERS: dict[Part, tuple[str, ...]] = {
    "adapter": ("adapter",),
    "adapter_gguf": ("adapter_gguf",),
    "merged": ("merged", "model"),
    "merged_4bit": ("merged_4bit",),
    "fp8": ("fp8",),
    "gguf": ("gguf", "modelfile", "card"),
}
"""Part of a run's export -> the kinds of its artefacts; GGUF files go with what lies beside them."""


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    force: bool = False,
    message: str | None = None,
    card: str | None = None,
    leave_out: Sequence[str] = (),
    tell: Tell = ignore_event,
) -> str:
    """Upload everything in ``folder`` to the model repository ``repo_id``, which is created if need be.

    Hidden and half-written files stay. Local paths in verdicts and in the adapter's configuration are cut to
    their last part. An interrupted upload goes on when it is called again.

    Args:
        folder: an export.
        repo_id: ``owner/name``.
        private: the repository is created private, and one that exists must be; False: as it is, or public.
        force: upload GGUF files without a passing verdict.
        message: of the commits.
        card: text of the README.md there, in place of the folder's own.
        leave_out: folders in it that stay.
        tell: takes what happens, see :func:`.upload.upload`.

    Returns:
        The repository's address.

    Raises:
        WhetError: ``hub.unproven`` naming the files, ``hub.no_folder``, ``hub.card``, ``hub.offline``, and
            those of :func:`.upload.upload`.
    """
    items = _items(folder, leave_out, card) if folder.is_dir() else []
    if not any(item.name != CARD for item in items):
        raise WhetError(
            "hub.no_folder", f"{folder} holds nothing to upload.", "Export first with `whet export`."
        )
    if not force:
        _refuse_unproven(unproven(folder, leave_out))
    for item in items:
        if item.name == CARD:
            check_card(item.source.decode() if isinstance(item.source, bytes) else item.source.read_text())
    if settings().offline:
        raise WhetError(
            "hub.offline",
            f"Uploading {repo_id} needs the network, and WHET_OFFLINE or HF_HUB_OFFLINE is set.",
            "Unset it, or copy the folder by other means.",
        )
    words = message or f"Upload {folder.name} with whet"
    return upload(repo_id, items, private=private, message=words, tell=tell)


def list_part(export: Path, part: Part, *, force: bool = False) -> list[Artifact]:
    """What :func:`push_part` would upload. Raises WhetError ``hub.nothing``, and ``hub.unproven`` unless
    ``force``."""
    found = [one for one in list_artifacts(export) if one.kind in FOLDERS[part]]
    if not any(one.kind in (part, "model") for one in found):
        raise WhetError(
            "hub.nothing", f"{export} holds no {part} to upload.", "Export it first with `whet export`."
        )
    if not force:
        _refuse_unproven(unproven(*_place(export, part, found)))
    return found


def push_part(
    run: RunDir,
    part: Part,
    repo_id: str,
    *,
    private: bool = True,
    force: bool = False,
    tell: Tell = ignore_event,
) -> str:
    """Upload one part of a run's ``export/`` with a model card about it, else as :func:`push_folder` does.

    All GGUF files go into one repository.
    """
    found = list_part(run.export, part, force=force)
    words = f"Upload {part} of {run.id} with whet"
    folder, others = _place(run.export, part, found)
    return push_folder(
        folder,
        repo_id,
        private=private,
        force=force,
        message=words,
        card=_card(run, part, found),
        leave_out=others,
        tell=tell,
    )


def unproven(folder: Path, leave_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """GGUF files and weights in ``folder`` that may not be pushed, each with the reason."""
    found = []
    for path in _files(folder, leave_out):
        if path.suffix == ".gguf":
            verdict = load_verdict(path, whole=True)
            if verdict is None:
                found.append((path.name, "no verdict of exactly this file"))
            elif verdict.status == "fail":
                found.append((path.name, f"failed: {verdict.failures()[0].summary}"))
        elif path.name == "adapter_config.json":
            changed = changed_weights(path.parent)
            found += [(name, "changed since training wrote it") for name in changed if name == ADAPTER]
        elif path.name == "config.json":
            verdict = load_verdict(path.parent, whole=True)
            if verdict is None and verdict_path(path.parent).is_file():
                found.append((path.parent.name, "changed since it was proven"))
            elif verdict is not None and verdict.status == "fail":
                found.append((path.parent.name, f"failed: {verdict.failures()[0].summary}"))
    return found


def _refuse_unproven(found: Sequence[tuple[str, str]]) -> None:
    if found:
        named = "; ".join(f"{name} ({reason})" for name, reason in found)
        raise WhetError(
            "hub.unproven",
            f"Not uploaded, since {len(found)} file(s) are unproven: {named}.",
            "Prove them with `whet smoke FILE --reference MODEL` (adapters: export them again). To upload "
            "them all the same: `whet push --unproven`, or force=True in Python.",
        )


def _place(export: Path, part: Part, found: Sequence[Artifact]) -> tuple[Path, list[str]]:
    """The folder of a part, and what in there does not belong to it: beside GGUF files the other parts."""
    if part == "gguf":
        return export, sorted(path.name for path in export.iterdir() if path.is_dir())
    path = found[0].path
    return (path if path.is_dir() else path.parent), []


def _card(run: RunDir, part: Part, found: Sequence[Artifact]) -> str:
    """Of these files as they are now; what the export wrote may be older."""
    files = {one.path.name: one.bytes for one in found if one.kind != "card"}
    verdicts = [one.verdict for one in found if one.verdict is not None]
    return card_text(run.id, facts_of(run), verdicts, _export_findings(run), files, part)


def _export_findings(run: RunDir) -> list[str]:
    """What exports of this run, its own and later ones, found: titles, each once."""
    places = [run, *(RunDir(Path(job.path)) for job in run.list_jobs())]
    events = [event for place in places for event in last_attempt(read_events(place.events)[0])]
    findings = [event.finding for event in events if isinstance(event, FindingEvent)]
    return list(dict.fromkeys(one.title for one in findings if one.id.startswith("X")))


def _files(folder: Path, leave_out: Sequence[str]) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        ignored = any(fnmatch(inside.as_posix(), one) or fnmatch(path.name, one) for one in IGNORED)
        if path.is_file() and not hidden and not ignored and inside.parts[0] not in leave_out:
            found.append(path)
    return found


def _items(folder: Path, leave_out: Sequence[str], card: str | None) -> list[Item]:
    files = [path for path in _files(folder, leave_out) if not _is_stray_verdict(path)]
    items = [_item(path, path.relative_to(folder).as_posix()) for path in files]
    has_card = any(item.name == CARD for item in items)
    if not items or (has_card and card is None):
        return items
    text = card if card is not None else _folder_card(folder, files)
    return [*(item for item in items if item.name != CARD), Item(CARD, text.encode())]


def _is_stray_verdict(path: Path) -> bool:
    """Of weights that are not in this folder; their own card tells it."""
    name = path.name.removesuffix(VERDICT)
    return path.name.endswith(VERDICT) and not path.with_name(f"{name}.gguf").is_file()


def _folder_card(folder: Path, files: Sequence[Path]) -> str:
    """Of a folder that no run made: what its files tell."""
    config = folder / "adapter_config.json"
    base = (
        json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if config.is_file()
        else None
    )
    ggufs = [path for path in files if path.suffix == ".gguf"]
    verdicts = [verdict for path in [*ggufs, folder] if (verdict := load_verdict(path)) is not None]
    part: Part = "adapter" if config.is_file() else "gguf" if ggufs else "merged"
    weights = {path.name: path.stat().st_size for path in files if path.suffix in (".gguf", ".safetensors")}
    return card_text(folder.name, CardFacts(base_model=base), verdicts, files=weights, part=part)


def _item(path: Path, name: str) -> Item:
    for pattern, publish in REWRITTEN.items():
        if fnmatch(path.name, pattern):
            return Item(name, publish(path.read_text(encoding="utf-8")).encode())
    return Item(name, path)


def _public_verdict(text: str) -> str:
    verdict = Verdict.model_validate_json(text)
    public = Redactor().value(verdict.model_dump(mode="json") | {"gguf": Path(verdict.gguf).name})
    return json.dumps(public, indent=2, ensure_ascii=False) + "\n"


def _public_adapter(text: str) -> str:
    config = json.loads(text)
    base = config.get("base_model_name_or_path")
    if isinstance(base, str) and is_local(base):
        config["base_model_name_or_path"] = Path(base).name
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


REWRITTEN: dict[str, Callable[[str], str]] = {
    "*.verdict.json": _public_verdict,
    "adapter_config.json": _public_adapter,
}
"""Files that name places on this machine, and how they are published."""
