"""Broken set-ups of the export phase."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from faults.harness import Fault, Looked, planned
from support.exported import adapter as trained_adapter
from support.exported import baseline, healthy_gguf, learnt_model, merged, small_base
from support.gguf_faults import DROP, rewrite
from support.plan_inputs import TESTED_VERSIONS, chat_recipe, machine, write_chats
from support.tiny_models import TURN_END, build_tiny_model
from support.tiny_runs import create_run, next_attempt, tiny_recipe, write_chat_rows

from whet.engine import api
from whet.engine.checks.exported import ExportFacts, run_export_checks
from whet.engine.errors import WhetError
from whet.engine.export.merge_proof import judge_merge, merge_request
from whet.engine.export.modelfile_check import inspect_modelfile
from whet.engine.export.pipeline import export_model
from whet.engine.export.regenerate import regenerate_modelfile
from whet.engine.export.smoke import prove
from whet.engine.export.verdict import Verdict
from whet.engine.findings import Finding
from whet.engine.hardware import Disk
from whet.engine.recipe import ExportSection, Recipe
from whet.engine.runs.events import Event, FindingEvent
from whet.engine.runs.failures import describe_failure

GIB = 2**30

# --- X01: merged weights


def prove_merged(folder: Path) -> Looked:
    """Merged weights against base and adapter, measured in this process; mended by merging again."""
    from whet.engine.export.merge_process import main

    measured = main(merge_request(small_base(), trained_adapter(), folder), lambda done, total: None)
    verdict = Verdict.of([judge_merge(measured)], folder, file_type="merged")

    def mend(finding: Finding) -> Looked:
        return prove_merged(merged(folder))

    return Looked(run_export_checks(ExportFacts(verdicts=(verdict,))), mend)


def change_weights(folder: Path, change: Callable[[str, Any, Any], Any]) -> None:
    """Each merged tensor becomes ``change(name, merged, base)``."""
    from safetensors.torch import load_file, save_file

    base = load_file(small_base() / "model.safetensors")
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        changed = {name: change(name, one, base[name].to(one.dtype)) for name, one in tensors.items()}
        save_file({name: one.contiguous() for name, one in changed.items()}, file, {"format": "pt"})


def flipped_sign(folder: Path) -> Looked:
    change_weights(merged(folder / "merged"), lambda name, one, base: 2 * base - one)
    return prove_merged(folder / "merged")


def never_applied(folder: Path) -> Looked:
    change_weights(merged(folder / "merged"), lambda name, one, base: base)
    return prove_merged(folder / "merged")


def stale_shard(folder: Path) -> Looked:
    """One file of several is left from an earlier training's merge."""
    now = merged(folder / "merged", shard_bytes=100_000)
    earlier = merged(folder / "earlier", seed=2, shard_bytes=100_000)
    shards = sorted(now.glob("model-*.safetensors"))
    assert len(shards) > 2
    shutil.copyfile(earlier / shards[-1].name, shards[-1])
    return prove_merged(now)


def another_adapter(folder: Path) -> Looked:
    return prove_merged(merged(folder / "merged", seed=3))


# --- X02: disks


def planned_on_small_home(folder: Path) -> Looked:
    """Fifty checkpoints of all weights and optimizer states on a disk that holds a dozen."""
    model, rows = build_tiny_model(folder / "model"), write_chats(folder / "chats.jsonl", 1000)
    wanted = chat_recipe(model, rows, adapter__kind="none", training__keep_checkpoints=50)
    return planned(wanted, machine=machine(disk_free=16 << 20))


def planned_on_small_temporary(folder: Path) -> Looked:
    """A temporary folder in a few megabytes of memory."""
    model, rows = build_tiny_model(folder / "model"), write_chats(folder / "chats.jsonl", 1000)
    wanted = chat_recipe(model, rows, export__gguf=["q8_0"])

    def disks(temporary: int) -> list[Disk]:
        home = Disk(folder="home", path=folder, device=1, free=1000 * GIB)
        hub = Disk(folder="hub", path=folder, device=1, free=1000 * GIB)
        return [home, hub, Disk(folder="temporary", path=Path("/tmp"), device=2, free=temporary)]

    def look(temporary: int) -> Looked:
        found = planned(wanted, machine=machine(disks=disks(temporary)))
        return Looked(found.findings, lambda finding: look(100 * GIB))

    return look(8 << 20)


def full_while_converting(folder: Path) -> Looked:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    out = folder / "small disk"
    out.mkdir()
    (out / f".tiny-f16.gguf.{os.getpid()}.partial").symlink_to("/dev/full")

    def look(place: Path) -> Looked:
        events: list[Event] = []
        section = ExportSection(gguf=["f16"], smoke_test=False)
        try:
            export_model(learnt_model(), None, place, section, events.append, name="tiny")
        except WhetError as error:
            assert error.code == "export.disk_full"
        found = [event.finding for event in events if isinstance(event, FindingEvent)]
        return Looked(found, lambda finding: look(folder / "larger disk"))

    return look(out)


def full_while_saving_a_checkpoint(folder: Path) -> Looked:
    """A run dies of ENOSPC; its events may not even hold the finding, its state does."""
    base = build_tiny_model(folder / "model")
    rows = write_chat_rows(folder / "chats.jsonl", rows=120)
    run = create_run(tiny_recipe(base, rows))
    context = next_attempt(run)
    try:
        with open("/dev/full", "wb", buffering=0) as disk:
            disk.write(b"weights")
    except OSError as error:
        context.close("failed", describe_failure(error, run.path))

    def mend(finding: Finding) -> Looked:
        run.write_state(error=None)  # what the supervisor does when the run is resumed
        next_attempt(run).close("finished")
        return Looked(api.run(run.id).findings)

    return Looked(api.run(run.id).findings, mend)


# --- X03: GGUF files

OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def gguf_with(
    changes: Mapping[str, Any] | None = None,
    tensors: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> Callable[[Path], Looked]:
    """The healthy file with other metadata or tensors, proven against the model it was made from."""

    def look(folder: Path) -> Looked:
        return proven(rewrite(healthy_gguf(), folder / "model-f16.gguf", changes, tensors))

    return look


def proven(gguf: Path, asked: tuple[str, ...] = ("f16",)) -> Looked:
    # The first f16 file is what quantised ones are held against later, so it must be one that stays.
    if baseline().f16 is None:
        prove(healthy_gguf(), baseline(), keep=False)
    verdict = prove(gguf, baseline(), keep=False)
    facts = ExportFacts(section=ExportSection(gguf=list(asked)), verdicts=(verdict,))
    return Looked(run_export_checks(facts), lambda finding: proven(healthy_gguf()))


def reversed_matrix(name: str, data: np.ndarray) -> np.ndarray:
    return data[::-1].copy() if name == "blk.0.ffn_up.weight" else data


def rounded_too_far(folder: Path) -> Looked:
    """Two bits a weight for a model of two layers."""
    from whet.engine.export.gguf.quantize import quantize

    proven(healthy_gguf())  # the f16 file is what a quantised one is held against

    def look(kind: str) -> Looked:
        gguf = quantize(healthy_gguf(), folder / f"model-{kind}.gguf", kind).path
        verdict = prove(gguf, baseline(), keep=False)
        facts = ExportFacts(section=ExportSection(gguf=[kind]), verdicts=(verdict,))

        def mend(finding: Finding) -> Looked:
            assert finding.fix is not None
            return look(finding.fix.patch["export.gguf"][0])

        return Looked(run_export_checks(facts), mend)

    return look("q3_k_s")


# --- X04: what the export needs


def with_gguf(folder: Path, **patch: Any) -> Recipe:
    rows = write_chats(folder / "chats.jsonl", 1000)
    return chat_recipe(folder / "model", rows, export__gguf=["q8_0"], **patch)


def llama_cpp_missing(folder: Path) -> Looked:
    build_tiny_model(folder / "model")
    bare = {name: number for name, number in TESTED_VERSIONS.items() if name != "llama-cpp-python"}
    return planned(with_gguf(folder), machine=machine(versions=bare))


def llama_cpp_without_libraries(folder: Path) -> Looked:
    """LLAMA_CPP_LIB_PATH points to a folder that holds none."""
    build_tiny_model(folder / "model")

    def look(**variables: str) -> Looked:
        with environment(**variables):
            found = planned(with_gguf(folder), machine=machine())
        return Looked(found.findings, lambda finding: look())

    return look(LLAMA_CPP_LIB_PATH=str(folder))


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def unknown_activation(folder: Path) -> Looked:
    """A Llama with another activation, which llama.cpp would silently compute as SiLU."""
    build_tiny_model(folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "gelu"}))
    return planned(with_gguf(folder), machine=machine())


def unknown_tokenizer(folder: Path) -> Looked:
    """Words instead of bytes: no vocabulary of llama.cpp's decoders."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    build_tiny_model(folder / "model")
    file = folder / "model" / "tokenizer.json"
    spec = json.loads(file.read_text())
    added, size = {token["content"] for token in spec["added_tokens"]}, len(spec["model"]["vocab"])
    words = ["[UNK]", *"abcdefghijklmnopqrstuvwxyz0123456789?.", "what", "is", "plus", "it"]
    words += [f"##{word}" for word in words[1:] if len(word) == 1]
    words += [f"word{number}" for number in range(size - len(words))]
    tokenizer = Tokenizer(
        models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]")  # type: ignore[call-arg]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(sorted(added, key=lambda text: spec_id(spec, text)))
    tokenizer.save(str(file))
    return planned(with_gguf(folder), machine=machine())


def spec_id(spec: dict[str, Any], text: str) -> int:
    return next(token["id"] for token in spec["added_tokens"] if token["content"] == text)


# --- X05: Modelfile


def modelfile_with(change: Callable[[str], str]) -> Callable[[Path], Looked]:
    """The Modelfile that whet writes, edited by hand; the GGUF beside it is real."""

    def look(folder: Path) -> Looked:
        os.link(healthy_gguf(), folder / "learnt-f16.gguf")
        regenerate_modelfile(learnt_model(), folder)
        file = folder / "Modelfile"
        changed = change(file.read_text())
        assert changed != file.read_text()
        file.write_text(changed)

        def mend(finding: Finding) -> Looked:
            again = regenerate_modelfile(learnt_model(), folder)
            return Looked(run_export_checks(ExportFacts(modelfile=again)))

        return Looked(run_export_checks(ExportFacts(modelfile=inspect_modelfile(file, learnt_model()))), mend)

    return look


def chatml(text: str) -> str:
    before, _, rest = text.partition('TEMPLATE """')
    _, _, after = rest.partition('"""')
    template = (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    )
    return f'{before}TEMPLATE """{template}"""{after}'


MERGE_AGAIN, MODELFILE = "whet export RUN --merged", "whet export RUN --modelfile"
FAULTS: tuple[Fault, ...] = (
    Fault("X01", "merged with the sign flipped", flipped_sign, MERGE_AGAIN, "error"),
    Fault("X01", "the adapter was never applied", never_applied, MERGE_AGAIN, "error"),
    Fault("X01", "one shard of an earlier merge", stale_shard, MERGE_AGAIN, "error"),
    Fault("X01", "another run's adapter", another_adapter, MERGE_AGAIN, "error"),
    Fault("X02", "home too small for the checkpoints", planned_on_small_home,
          {"training.keep_checkpoints": 1}, "error"),
    Fault("X02", "temporary folder in a little memory", planned_on_small_temporary, "export TMPDIR=",
          "error"),
    Fault("X02", "disk full while a GGUF is written", full_while_converting, "--out", "error"),
    Fault("X02", "disk full while a checkpoint is written", full_while_saving_a_checkpoint, "whet resume",
          "error"),
    Fault("X03", "another chat template in the file",
          gguf_with({"tokenizer.chat_template": OTHER_TEMPLATE}), "trained template", "error"),
    Fault("X03", "no chat template in the file",
          gguf_with({"tokenizer.chat_template": DROP}), "chat template", "error"),
    Fault("X03", "BOS flag off", gguf_with({"tokenizer.ggml.add_bos_token": False}), "flags", "error"),
    Fault("X03", "one matrix upside down", gguf_with(tensors=reversed_matrix), "convert again", "error"),
    Fault("X03", "another epsilon",
          gguf_with({"llama.attention.layer_norm_rms_epsilon": 1e-5}), "config.json", "error"),
    Fault("X03", "rounded too far", rounded_too_far, {"export.gguf": ["q6_k"]}),
    Fault("X04", "llama-cpp-python is not installed", llama_cpp_missing, {"export.gguf": []}, "error"),
    Fault("X04", "llama.cpp finds no libraries", llama_cpp_without_libraries, "LLAMA_CPP_LIB_PATH", "error"),
    Fault("X04", "an activation that llama.cpp lacks", unknown_activation, {"export.gguf": []}, "error"),
    Fault("X04", "a tokenizer of words", unknown_tokenizer, {"export.gguf": []}, "error"),
    Fault("X05", "a header token as stop",
          modelfile_with(lambda text: text + 'PARAMETER stop "<|user|>"\n'), MODELFILE),
    Fault("X05", "the end of a turn is no stop",
          modelfile_with(lambda text: text.replace(f'PARAMETER stop "{TURN_END}"\n', "")), MODELFILE),
    Fault("X05", "the template of another family", modelfile_with(chatml), MODELFILE, "error"),
    Fault("X05", "FROM a file of another name",
          modelfile_with(lambda text: text.replace("learnt-f16", "learnt-q4_k_m")), MODELFILE, "error"),
)  # fmt: skip
