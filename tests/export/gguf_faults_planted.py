"""Faults planted into real GGUF files, and the step of the proof that must name each.

test_gguf_faults.py tries those of ``FAULTS``; `make export-table` tries ``everywhere()`` too, on each family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from support import exported
from support.gguf_faults import DROP, EditTensor, on, rewrite
from support.proven_models import DECODERS, ENCODERS, Proven, proven
from support.tiny_models import build_tiny_model

from whet.engine.export.gguf.convert import convert
from whet.engine.export.gguf.quantize import quantize
from whet.engine.export.merging import merge
from whet.engine.export.modelfile_check import inspect_modelfile
from whet.engine.export.regenerate import regenerate_modelfile
from whet.engine.export.smoke import prove

Break = Callable[[Proven, Path], Path]
"""(the healthy model, an empty folder) -> the broken file."""


@dataclass(frozen=True)
class GGUFFault:
    """One broken file.

    Args:
        name: what is wrong with it, in a few words.
        model: of :func:`support.proven_models.proven`.
        broken: makes it.
        caught_by: the step of the proof that must fail.
        failing: (fault, empty folder) -> the steps that failed.
    """

    name: str
    model: str
    broken: Break
    caught_by: str
    failing: Callable[[GGUFFault, Path], list[str]] = lambda fault, folder: failed_proofs(fault, folder)


def failed_proofs(fault: GGUFFault, folder: Path) -> list[str]:
    one = proven(fault.model)
    verdict = prove(fault.broken(one, folder), one.baseline, keep=False)
    return [proof.name for proof in verdict.failures()]


# What breaks a file


def values(changes: Mapping[str, Any], kind: str = "f16") -> Break:
    """Other values of some keys; ``{arch}`` stands for the file's architecture."""

    def broken(one: Proven, folder: Path) -> Path:
        named = {key.replace("{arch}", _architecture(one)): value for key, value in changes.items()}
        return rewrite(one.gguf(kind), folder / "broken.gguf", named)

    return broken


def tensors(edit: EditTensor, kind: str = "f16") -> Break:
    return lambda one, folder: rewrite(one.gguf(kind), folder / "broken.gguf", tensors=edit)


def exchanged(*pairs: tuple[str, str], kind: str = "f16") -> Break:
    """Tensors under each other's names."""
    names = dict(pairs) | {second: first for first, second in pairs}
    return lambda one, folder: rewrite(one.gguf(kind), folder / "broken.gguf", names=names)


def _architecture(one: Proven) -> str:
    wanted = one.baseline.facts["values"]["general.architecture"]
    return str(wanted)


def unpermuted(name: str, data: np.ndarray) -> np.ndarray:
    """q and k with rows in transformers' order. Heads are 64 wide here."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return data
    return data.reshape(-1, 32, 2, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)


def with_nan(data: np.ndarray) -> np.ndarray:
    data[0] = np.nan
    return data


def misspelt(token: str) -> Callable[[list[str]], list[str]]:
    """The list without a token: its place is taken by one that no text contains."""
    return lambda tokens: [f"[gone {token}]" if one == token else one for one in tokens]


def swapped_ids(first: str, second: str) -> Callable[[list[str]], list[str]]:
    other = {first: second, second: first}
    return lambda tokens: [other.get(one, one) for one in tokens]


def plain_text(token_types: list[int]) -> list[int]:
    """Special tokens as ordinary ones: llama.cpp no longer finds them in a text."""
    return [1 if kind == 3 else kind for kind in token_types]


def backwards(merges: list[str]) -> list[str]:
    return [*reversed(merges[:40]), *merges[40:]]


def exchanged_experts(data: np.ndarray) -> np.ndarray:
    data[[0, 1]] = data[[1, 0]]
    return data


def flipped(byte: int, bit: int) -> Callable[[np.ndarray], np.ndarray]:
    """One bit of the tensor's first block."""

    def edit(data: np.ndarray) -> np.ndarray:
        data.reshape(-1)[byte] ^= 1 << bit
        return data

    return edit


def shifted_norms(name: str, data: np.ndarray) -> np.ndarray:
    """Gemma's norms as the checkpoint holds them, around zero."""
    return data - 1 if "norm" in name else data


def doubled_bos(template: str) -> str:
    return "{{ bos_token }}" + template


def no_prompt(template: str) -> str:
    return template.replace("add_generation_prompt", "no_such_thing")


@cache
def earlier() -> Path:
    """The learnt model before it learnt, as f16."""
    before = build_tiny_model(exported.folder() / "before", wide=True)
    return convert(before, exported.folder() / "before-f16.gguf", "f16")


def from_earlier(part: str) -> Break:
    """One layer's tensors are left from before training."""

    def broken(one: Proven, folder: Path) -> Path:
        from gguf import GGUFReader

        old = {tensor.name: tensor.data for tensor in GGUFReader(earlier()).tensors}
        edit: EditTensor = lambda name, data: old[name] if part in name else data  # noqa: E731
        return rewrite(one.gguf("f16"), folder / "broken.gguf", tensors=edit)

    return broken


def head_is_embedding(one: Proven, folder: Path) -> Path:
    from gguf import GGUFReader

    data = next(t.data for t in GGUFReader(one.gguf("f16")).tensors if t.name == "token_embd.weight")
    edit: EditTensor = lambda name, own: data if name == "output.weight" else own  # noqa: E731
    return rewrite(one.gguf("f16"), folder / "broken.gguf", tensors=edit)


def unmerged(one: Proven, folder: Path) -> Path:
    return convert(exported.small_base(), folder / "broken.gguf", "f16")


def merged_twice(one: Proven, folder: Path) -> Path:
    merge(one.folder, exported.adapter(), folder / "twice")
    return convert(folder / "twice", folder / "broken.gguf", "f16")


def truncated(one: Proven, folder: Path) -> Path:
    whole = one.gguf("f16").read_bytes()
    broken = folder / "broken.gguf"
    broken.write_bytes(whole[: int(0.8 * len(whole))])
    return broken


def quantised_of_another(one: Proven, folder: Path) -> Path:
    return quantize(earlier(), folder / "broken.gguf", "q4_k_m").path


# Proofs other than that of a GGUF model


def header_as_stop(fault: GGUFFault, folder: Path) -> list[str]:
    """The Modelfile beside the file, which has a check of its own (finding X05)."""
    one = proven(fault.model)
    (folder / one.gguf("f16").name).symlink_to(one.gguf("f16"))
    file = regenerate_modelfile(one.folder, folder).path
    assert file is not None and not inspect_modelfile(file, one.folder).headers
    file.write_text(file.read_text() + 'PARAMETER stop "<|user|>"\n')
    return ["modelfile"] if inspect_modelfile(file, one.folder).headers else []


def other_alpha(fault: GGUFFault, folder: Path) -> list[str]:
    """An adapter's GGUF over its base, beside PEFT."""
    from whet.engine.export.targets.adapter_gguf import write_adapter_gguf
    from whet.engine.export.targets.adapter_proof import prove_adapter

    base, adapter = exported.small_base(), exported.adapter()
    under = convert(base, folder / "base.gguf", "f32")
    write_adapter_gguf(adapter, base, folder / "right.gguf")
    wrong = rewrite(
        folder / "right.gguf", folder / "wrong.gguf", {"adapter.lora.alpha": lambda one: 0.9 * one}
    )
    return [proof.name for proof in prove_adapter(base, under, adapter, wrong).failures()]


def nothing(one: Proven, folder: Path) -> Path:
    return folder


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE, TOKENS = "tokenizer.chat_template", "tokenizer.ggml.tokens"
LAYERS = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "attn_norm",
    "ffn_norm",
)

FAULTS: tuple[GGUFFault, ...] = (
    # tokenizer
    GGUFFault("another pre-tokenizer", "learnt", values({"tokenizer.ggml.pre": "default"}), "vocabulary"),
    GGUFFault("an added token is dropped", "learnt", values({TOKENS: misspelt("<|user|>")}), "vocabulary"),
    GGUFFault("a merged token is dropped", "learnt", values({TOKENS: misspelt("Ġthe")}), "vocabulary"),
    GGUFFault("two tokens in each other's place", "learnt",
              values({TOKENS: swapped_ids("Ġa", "Ġt")}), "vocabulary"),
    GGUFFault("merges in another order", "learnt",
              values({"tokenizer.ggml.merges": backwards}), "vocabulary"),
    GGUFFault("special tokens are plain text", "learnt",
              values({"tokenizer.ggml.token_type": plain_text}), "vocabulary"),
    # template, BOS, stops
    GGUFFault("no chat template", "learnt", values({TEMPLATE: DROP}), "template"),
    GGUFFault("another family's template", "learnt", values({TEMPLATE: CHATML}), "template"),
    GGUFFault("no generation prompt", "learnt", values({TEMPLATE: no_prompt}), "template"),
    GGUFFault("the template writes BOS twice", "learnt", values({TEMPLATE: doubled_bos}), "bos"),
    GGUFFault("BOS is not added", "learnt", values({"tokenizer.ggml.add_bos_token": False}), "bos"),
    GGUFFault("EOS is added", "learnt", values({"tokenizer.ggml.add_eos_token": True}), "bos"),
    GGUFFault("another end of turn", "learnt",
              values({"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": DROP}), "stops"),
    GGUFFault("a header token as stop", "learnt", nothing, "modelfile", header_as_stop),
    # configuration
    GGUFFault("another epsilon", "learnt",
              values({"{arch}.attention.layer_norm_rms_epsilon": 1e-5}), "configuration"),
    GGUFFault("another rotary base", "learnt", values({"{arch}.rope.freq_base": 500000.0}), "configuration"),
    GGUFFault("rope scaling that is none", "learnt",
              values({"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 4.0}),
              "configuration"),
    GGUFFault("half of each head rotated", "learnt",
              values({"{arch}.rope.dimension_count": 32}), "llama.cpp"),
    GGUFFault("another context", "learnt", values({"{arch}.context_length": 4096}), "configuration"),
    GGUFFault("more K/V heads", "learnt", values({"{arch}.attention.head_count_kv": 4}), "llama.cpp"),
    GGUFFault("Llama 3's factors left out", "llama3",
              tensors(on("rope_freqs", lambda data: None)), "configuration"),
    GGUFFault("Llama 3's factors all one", "llama3",
              tensors(on("rope_freqs", np.ones_like)), "configuration"),
    GGUFFault("another window", "gemma2", values({"{arch}.attention.sliding_window": 17}), "configuration"),
    GGUFFault("other windowed layers", "gemma2",
              values({"{arch}.attention.sliding_window_pattern": [False, True]}), "configuration"),
    GGUFFault("another softcap", "gemma2", values({"{arch}.attn_logit_softcapping": 50.0}), "configuration"),
    GGUFFault("one expert instead of two", "qwen3_moe",
              values({"{arch}.expert_used_count": 1}), "configuration"),
    GGUFFault("another pooling", "embedding-bert", values({"bert.pooling_type": 2}), "configuration"),
    # weights
    GGUFFault("q and k not permuted", "learnt", tensors(unpermuted), "logits"),
    GGUFFault("gate and up exchanged", "learnt",
              exchanged(("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")), "logits"),
    GGUFFault("two layers exchanged", "learnt",
              exchanged(*((f"blk.0.{one}.weight", f"blk.1.{one}.weight") for one in LAYERS)), "logits"),
    GGUFFault("no head", "learnt",
              tensors(lambda name, data: None if name == "output.weight" else data), "logits"),
    GGUFFault("the embedding as head", "learnt", head_is_embedding, "logits"),
    GGUFFault("norms around zero", "gemma2", tensors(shifted_norms), "logits"),
    GGUFFault("a matrix of zeros", "learnt",
              tensors(on("blk.1.attn_output.weight", np.zeros_like)), "logits"),
    GGUFFault("a NaN", "learnt", tensors(on("blk.0.attn_norm.weight", with_nan)), "logits"),
    GGUFFault("a layer of an earlier checkpoint", "learnt", from_earlier("blk.1.ffn_down"), "logits"),
    GGUFFault("two experts exchanged", "qwen3_moe",
              tensors(on("blk.0.ffn_down_exps", exchanged_experts)), "logits"),
    GGUFFault("adapter not merged", "tuned", unmerged, "logits"),
    GGUFFault("adapter merged twice", "tuned", merged_twice, "logits"),
    GGUFFault("another LoRA alpha", "tuned", nothing, "adapter", other_alpha),
    GGUFFault("a file that was cut off", "learnt", truncated, "llama.cpp"),
    # quantised tensors
    GGUFFault("a scale's bit flipped in one q4_k block", "learnt",
              tensors(on("blk.1.ffn_gate.weight", flipped(1, 2)), "q4_k_m"), "weights"),
    GGUFFault("a weight's bit flipped in one q8_0 block", "learnt",
              tensors(on("blk.0.attn_q.weight", flipped(7, 7)), "q8_0"), "weights"),
    GGUFFault("two experts exchanged in q4_k_m", "qwen3_moe",
              tensors(on("blk.1.ffn_up_exps", exchanged_experts), "q4_k_m"), "weights"),
    GGUFFault("a matrix of zeros in q4_k_m", "learnt",
              tensors(on("blk.0.attn_k.weight", np.zeros_like), "q4_k_m"), "weights"),
    GGUFFault("q4_k_m of the model before training", "learnt", quantised_of_another, "weights"),
)  # fmt: skip

COMMON: tuple[tuple[str, Break, str], ...] = (
    ("an added token is dropped", values({TOKENS: misspelt("<|user|>")}), "vocabulary"),
    ("no chat template", values({TEMPLATE: DROP}), "template"),
    ("another family's template", values({TEMPLATE: CHATML}), "template"),
    ("another end of turn",
     values({"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": DROP}), "stops"),
    ("another epsilon", values({"{arch}.attention.layer_norm_rms_epsilon": 3e-5}), "configuration"),
    ("another rotary base", values({"{arch}.rope.freq_base": 12345.0}), "configuration"),
    ("another context", values({"{arch}.context_length": 4096}), "configuration"),
    ("a matrix of zeros", tensors(on("blk.1.attn_output.weight", np.zeros_like)), "logits"),
    ("two layers' attention exchanged",
     exchanged(("blk.0.attn_output.weight", "blk.1.attn_output.weight")), "logits"),
    ("the last norm off by one", tensors(on("output_norm.weight", lambda data: data - 1)), "logits"),
    ("a file that was cut off", truncated, "llama.cpp"),
    ("a scale's bit flipped in one q4_k block",
     tensors(on("blk.1.attn_output.weight", flipped(1, 2)), "q4_k_m"), "weights"),
    ("a matrix of zeros in q8_0", tensors(on("blk.0.attn_output.weight", np.zeros_like), "q8_0"), "weights"),
)  # fmt: skip
"""Faults that every decoder can have."""


def everywhere() -> Iterator[GGUFFault]:
    """Each of :data:`COMMON` on every decoder family."""
    for model in DECODERS:
        for name, broken, caught_by in COMMON:
            yield GGUFFault(name, model, broken, caught_by)


HEALTHY_TYPES = ("f16", "q8_0", "q4_k_m")
HEALTHY_EVERYWHERE = tuple((model, kind) for model in (*DECODERS, *ENCODERS) for kind in HEALTHY_TYPES)
