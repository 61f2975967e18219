"""Broken set-ups of the environment phase: the hub and downloads, over a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.harness import Fault, Looked
from support.fake_surroundings import after, command_of, environ, look_at
from support.mini_hub import MiniHub, serve
from support.plan_inputs import LLAMA_8B, machine, model_facts, plan_facts, write_chats
from support.tiny_models import BOS, EOS, PAD, TURN_END, write_tokenizer

from whet.engine.checks import run_checks
from whet.engine.checks.network import DownloadFailed
from whet.engine.downloads import fetch
from whet.engine.findings import Finding
from whet.engine.models.locate import SMALL_FILES
from whet.engine.recipe import Recipe
from whet.engine.surroundings.facts import Surroundings
from whet.engine.surroundings.hub import ask_hub, read_hub

SECRET = "hf_notarealtokenatall"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\x01" * 2_000_000}
NETWORK = {"WHET_OFFLINE": None, "HF_HUB_OFFLINE": None, "TRANSFORMERS_OFFLINE": None, "HF_TOKEN": None,
           "HUGGING_FACE_HUB_TOKEN": None, "HF_HUB_CACHE": None, "HUGGINGFACE_HUB_CACHE": None,
           "HF_TOKEN_PATH": None}  # fmt: skip


PLAN = """
import sys
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
found = make_plan(Recipe.model_validate_json(sys.argv[1])).findings
print("[" + ",".join(finding.model_dump_json() for finding in found) + "]")
"""


def download(hub: MiniHub, patience: float = 20.0, careful: bool = False) -> list[Finding]:
    try:
        fetch(hub.name, None, ["*"], patience=patience, careful=careful)
    except DownloadFailed as error:
        return [error.finding]
    return []


def stalled(folder: Path) -> Looked:
    """The connection stays open and no byte comes; the files that came before are kept."""
    hub = MiniHub(FILES, stalls={"model.safetensors"})
    with serve(hub), environ(**NETWORK, HF_HOME=str(folder), HF_ENDPOINT=hub.url):
        found = download(hub, patience=4.0)  # the client alone may take a second to start
    assert hub.sent.count("config.json") == 1  # finished files are not asked for again

    def mend(finding: Finding) -> Looked:
        assert "HF_HUB_DISABLE_XET=1" in command_of(finding) and "--max-workers 1" in command_of(finding)
        again = MiniHub(FILES)
        with serve(again), environ(**NETWORK, HF_HOME=str(folder), HF_ENDPOINT=again.url):
            still = download(again, careful=True)
        assert again.sent == ["model.safetensors"]
        return Looked(still)

    return Looked(found, mend)


def gated(folder: Path, granted: bool) -> Looked:
    """A gated model, and nobody logged in, or somebody without access."""
    hub = MiniHub(FILES, tokens={SECRET: "anna", "hf_someoneelsestoken": "ben"}, gated=("anna",))

    def look(token: str | None) -> list[Finding]:
        place = folder / f"as-{token}"  # the client remembers refusals
        with serve(hub), environ(**NETWORK | {"HF_TOKEN": token}, HF_HOME=str(place), HF_ENDPOINT=hub.url):
            return download(hub)

    def mend(finding: Finding) -> Looked:
        assert command_of(finding) == "hf auth login"
        return Looked(look(SECRET))

    return Looked(look("hf_someoneelsestoken" if granted else None), mend)


def refused(folder: Path) -> Looked:
    """An old token in the environment hides a good login."""
    hub = MiniHub({}, tokens={SECRET: "anna"})
    (folder / "token").write_text(SECRET)

    def look(token: str | None) -> list[Finding]:
        with serve(hub), environ(**NETWORK | {"HF_TOKEN": token}, HF_HOME=str(folder), HF_ENDPOINT=hub.url):
            asked = read_hub()
            return look_at(Surroundings(hub=asked.model_copy(update={"reach": ask_hub(asked)})), machine())

    wrong = {"HF_TOKEN": "hf_revokedlongago"}
    return Looked(
        look(wrong["HF_TOKEN"]),
        lambda finding: Looked(look(after(command_of(finding), wrong).get("HF_TOKEN"))),
    )


def offline(folder: Path, flag: str) -> Looked:
    """Config and tokenizer are cached from an earlier plan, the weights are not, and a flag forbids that."""
    made = folder / "model"
    made.mkdir()
    ids = write_tokenizer(made)
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": ids["rows"],
        "bos_token_id": ids[BOS],
        "eos_token_id": [ids[TURN_END], ids[EOS]],
        "pad_token_id": ids[PAD],
    }
    (made / "config.json").write_text(json.dumps(LLAMA_8B | small))
    hub = MiniHub(
        {file.name: file.read_bytes() for file in made.iterdir()} | {"model.safetensors": b"\x01" * 1000}
    )
    chats = write_chats(folder / "chats.jsonl", 1000)
    recipe = Recipe.model_validate(
        {"model": {"name": hub.name, "max_length": 256}, "data": {"train": str(chats)}}
    )

    def look(environment: dict[str, str]) -> list[Finding]:
        """In a Python of its own: the hub's client reads its variables once."""
        with serve(hub), environ(**NETWORK, HF_HOME=str(folder / "hf"), HF_ENDPOINT=hub.url):
            done = subprocess.run(
                [sys.executable, "-P", "-c", PLAN, recipe.model_dump_json()],
                env=os.environ | environment | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
                capture_output=True,
                check=True,
            )
        return [Finding.model_validate(one) for one in json.loads(done.stdout)]

    with serve(hub), environ(**NETWORK, HF_HOME=str(folder / "hf"), HF_ENDPOINT=hub.url):
        fetch(hub.name, None, SMALL_FILES)
    return Looked(look({flag: "1"}), lambda finding: Looked(look(after(command_of(finding), {flag: "1"}))))


def no_room(folder: Path) -> Looked:
    """The hub's cache lies on a disk that the weights do not fit on."""
    model = model_facts(folder / "8b")

    def look(free: int) -> list[Finding]:
        with environ(**NETWORK, HF_HOME=str(folder)):
            hub = read_hub().model_copy(update={"cache_free": free})
        return [f for f in run_checks(plan_facts(model, surroundings=Surroundings(hub=hub))) if f.id == "E03"]

    def mend(finding: Finding) -> Looked:
        larger = command_of(finding).replace("/path/on/a/larger/disk", str(folder / "larger"))
        assert after(larger, {})["HF_HOME"] == str(folder / "larger")
        return Looked(look(200 * 2**30))

    return Looked(look(5 * 2**30), mend)


def closed_cache(folder: Path) -> Looked:
    """The hub's cache belongs to somebody else."""
    model = model_facts(folder / "8b")

    def look(home: Path, writable: bool) -> list[Finding]:
        with environ(**NETWORK, HF_HOME=str(home)):
            hub = read_hub().model_copy(update={"cache_writable": writable, "cache_free": 200 * 2**30})
        return [f for f in run_checks(plan_facts(model, surroundings=Surroundings(hub=hub))) if f.id == "E03"]

    def mend(finding: Finding) -> Looked:
        own = Path(after(command_of(finding), {"HOME": str(folder)})["HF_HOME"])
        return Looked(look(own, writable=folder in own.parents))

    return Looked(look(Path("/somebody/elses"), writable=False), mend)


def case(name: str, fix: str, look: Callable[..., Looked], *arguments: Any, severity: str = "error") -> Fault:
    return Fault("E03", name, lambda folder: look(folder, *arguments), fix, severity)


FAULTS: tuple[Fault, ...] = (
    case("a download that stands still", "HF_HUB_DISABLE_XET=1", stalled),
    case("a gated model and no login", "hf auth login", gated, False),
    case("a gated model and an account without access", "Accept its terms", gated, True),
    case("an old token hides a good login", "unset HF_TOKEN", refused, severity="warning"),
    case("offline by whet's flag, weights not here", "unset WHET_OFFLINE", offline, "WHET_OFFLINE"),
    case("offline by the hub's flag, weights not here", "unset HF_HUB_OFFLINE", offline, "HF_HUB_OFFLINE"),
    case("no room for the weights", "HF_HOME", no_room),
    case("a cache that cannot be written", "HF_HOME", closed_cache),
)
