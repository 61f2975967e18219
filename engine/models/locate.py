"""From a model's name to a directory on disk: the shipped demo, a local folder, or the hub's own cache."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path

from ..errors import WhetError
from ..settings import settings
from .own_code import CODE_FILES, refuse_hub_kernels
from .own_files import refuse_links_out, refuse_pickled_modules, shards

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "merges.txt"]
WEIGHT_FILES = ["*.safetensors"]
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?$")


def resolve_model(
    name: str, revision: str | None = None, *, weights: bool = False, code: bool = False
) -> Path:
    """The directory of a model.

    Args:
        name: ``demo``, a local directory, or a hub id.
        revision: hub branch, tag or commit; no meaning for a local directory.
        weights: also fetch the safetensors weights; without it only config and tokenizer files travel.
        code: with the weights, fetch the model's own Python files too.

    Raises:
        WhetError: ``model.not_found`` (no such directory, or not cached while offline), ``model.no_config``
            (a directory without config.json), ``model.no_weights`` (weights asked for, none there),
            ``model.index``, ``model.link`` (it names files that are not its own), ``model.remote_code``
            (kernels of the hub), ``model.pickled`` (a layer without safetensors), ``model.download`` (the
            hub said no).
    """
    if name == "demo":
        from ..demo import MODEL_DIR

        return _checked(Path(MODEL_DIR), name, weights)
    local = Path(os.path.expanduser(name))
    if os.path.isdir(local):  # pathlib raises for names that are too long
        return _checked(local.absolute(), name, weights)
    if not HUB_ID.match(name) or os.path.isfile(local):
        raise _no_such_directory(name, local)
    return _checked(_from_hub(name, revision, weights, code), name, weights)


def _checked(path: Path, name: str, weights: bool) -> Path:
    if not (path / "config.json").is_file():
        adapter = (path / "adapter_config.json").is_file()
        raise WhetError(
            "model.no_config",
            f"{path} has no config.json, so it is not a model directory.",
            "It holds an adapter: name the base model and resume the adapter's run, or merge it first."
            if adapter
            else "Give the directory that holds config.json, tokenizer.json and *.safetensors.",
        )
    refuse_links_out(path)
    refuse_hub_kernels(path)
    if weights and (missing := missing_weights(path)):
        raise WhetError(
            "model.no_weights",
            f"{name}: {path} lacks weights ({', '.join(missing[:3])}).",
            "Only safetensors weights are read; convert others with save_pretrained(...), or download "
            "the rest of the model.",
        )
    if weights:
        refuse_pickled_modules(path)
    return path


def adapter_base(folder: Path) -> str:
    """The base model that an adapter names. Raises WhetError ``model.no_base`` where that cannot be read."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WhetError("model.no_base", f"{file} is not JSON: {error}", "Save the adapter again.") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise WhetError(
            "model.no_base",
            f"{file} does not name its base model.",
            "Set base_model_name_or_path there to the base's folder or hub id.",
        )
    return base


def missing_weights(path: Path) -> list[str]:
    """Names of weight files that should be in ``path`` and are not; empty when complete.

    Raises WhetError ``model.index`` as :func:`.own_files.shards`.
    """
    index = shards(path)
    if index is not None:
        return sorted(file for file in set(index.values()) if not (path / file).is_file())
    return [] if any(path.glob("*.safetensors")) else ["*.safetensors"]


def _no_such_directory(name: str, local: Path) -> WhetError:
    parent = local.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if os.path.isdir(parent) else []
    near = difflib.get_close_matches(local.name, names, n=1)
    where = f"Did you mean {parent / near[0]}?" if near else "Check the path."
    what = "is a file, not a model directory" if os.path.isfile(local) else "does not exist"
    return WhetError("model.not_found", f"{name} {what}.", where)


def _from_hub(name: str, revision: str | None, weights: bool, code: bool) -> Path:
    """A snapshot in the hub's cache, downloaded unless offline."""
    if weights:
        from ..downloads import fetch

        return fetch(name, revision, SMALL_FILES + WEIGHT_FILES + (CODE_FILES if code else []))
    from ..download_process import answer
    from ..downloads import refusal

    request = {"name": name, "revision": revision, "patterns": SMALL_FILES, "workers": 8}
    found = answer(request | {"offline": settings().offline}, bars=False)
    if "path" in found:
        return Path(found["path"])
    raise refusal(name, found)
