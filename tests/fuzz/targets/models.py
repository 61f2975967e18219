"""Folders of models: configurations, tokenizers, headers of weights, adapters; read as plans read them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz import mutate
from fuzz.case import Case, Room, Target

from whet.engine import api
from whet.engine.data.tokenization import RowTokenizer, TokenizerFiles
from whet.engine.demo import MODEL_DIR
from whet.engine.export.gguf.probe import conversion_refusal
from whet.engine.models.known import KNOWN
from whet.engine.models.layout import read_headers
from whet.engine.models.locate import adapter_base
from whet.engine.models.own_code import own_code
from whet.engine.models.stored_tensors import stored_tensors

Files = dict[str, bytes]
ROW = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]}
JSON_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
SPECIALS = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "special": True},
    "additional_special_tokens": ["<a>"],
}
ADDED = {"0": {"content": "<a>", "special": True}, "5": {"content": "<b>", "special": False}}
QUANTIZED = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
MORE: tuple[dict[str, Any], ...] = (
    {"quantization_config": QUANTIZED},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}},
    {"num_local_experts": 8, "num_experts_per_tok": 2, "model_type": "mixtral"},
    {"model_type": "bert"},
    {"model_type": "whisper", "encoder_layers": 2, "d_model": 64, "encoder_attention_heads": 2},
    {
        "model_type": "gemma3",
        "vision_config": {"hidden_size": 32},
        "text_config": {"model_type": "gemma3_text"},
    },
    {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
    {"architectures": ["LlamaForCausalLM"], "layer_types": ["full_attention"]},
    {"model_type": "nosuch"},
)


def _folder(rng: Random) -> Files:
    """The demo's small files, and a header as its weights have."""
    files = {
        path.name: path.read_bytes() for path in Path(MODEL_DIR).iterdir() if path.suffix != ".safetensors"
    }
    return {**files, "model.safetensors": weights(_shapes())}


def _shapes() -> dict[str, Any]:
    """A few tensors in their order, as the header of a safetensors file says them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in (
        ("model.embed_tokens.weight", [64, 4]),
        ("model.layers.0.self_attn.q_proj.weight", [4, 4]),
        ("model.norm.weight", [4]),
        ("lm_head.weight", [64, 4]),
    ):
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


def weights(header: Any, body: int = 2200) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def _mutated(rng: Random, content: bytes) -> bytes:
    """A JSON file: its values, or its text."""
    if rng.random() < 0.75:
        return json.dumps(mutate.value(rng, json.loads(content)), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    return mutate.data(rng, content)


def make_config(rng: Random) -> Case:
    files = _folder(rng)
    config = json.loads(files["config.json"]) if rng.random() < 0.4 else dict(rng.choice(KNOWN).config)
    if rng.random() < 0.5:
        config |= rng.choice(MORE)
    files["config.json"] = _mutated(rng, json.dumps(config).encode())
    if rng.random() < 0.2:
        files["generation_config.json"] = _mutated(rng, files["generation_config.json"])
    if rng.random() < 0.3:
        del files["model.safetensors"]
    return Case(files)


def run_folder(case: Case, room: Room) -> None:
    """Inspected, listed, planned; what one refuses may be another's to accept."""
    errors: list[api.WhetError] = []
    for look in (_inspected, _listed, _planned):
        try:
            look(room)
        except api.WhetError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _inspected(room: Room) -> None:
    own_code(str(room.files), room.files)
    api.inspect_model(str(room.files)).model_dump_json()
    conversion_refusal(room.files, None)


def _listed(room: Room) -> None:
    api.models(folders=[room.files])
    api.method_models("embedding", [room.files])


def _planned(room: Room, types: Sequence[str] = ()) -> None:
    rows = room.out / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    values = {
        "model": {"name": str(room.files)},
        "data": {"train": str(rows)},
        "export": {"gguf": list(types)},
    }
    api.plan(api.recipe_from_text(json.dumps(values))).model_dump_json()


def make_tokenizer(rng: Random) -> Case:
    files = _folder(rng)
    files["special_tokens_map.json"] = json.dumps(SPECIALS).encode()
    config = json.loads(files["tokenizer_config.json"])
    config |= rng.choice(
        ({}, {"added_tokens_decoder": ADDED}, {"chat_template": [{"name": "default", "template": "x"}]})
    )
    files["tokenizer_config.json"] = json.dumps(config).encode()
    name = rng.choice(
        ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    )
    files[name] = _mutated(rng, files[name])
    if rng.random() < 0.2:
        files["chat_template.jinja"] = mutate.data(rng, files["chat_template.jinja"])
    return Case(files)


def run_tokenizer(case: Case, room: Room) -> None:
    """Loaded, used on a text, and in all that a folder is used for."""
    error = None
    try:
        files = TokenizerFiles.read(room.files)
        rows = RowTokenizer.from_files(files)
        files.digest()
        rows.tokenizer.encode("hello \U0001f600 <s>")
    except api.WhetError as refused:
        error = refused
    run_folder(case, room)
    if error is not None:
        raise error


def run_in_llama(case: Case, room: Room) -> None:
    """Planned with a GGUF, for which llama.cpp tries the tokenizer in a process of its own."""
    _planned(room, ["q8_0"])


def make_weights(rng: Random) -> Case:
    files = _folder(rng)
    header = _shapes()
    if rng.random() < 0.8:
        header = mutate.value(rng, header)
    made = weights(header, rng.choice((2200, 2192, 0, 5000)))
    if rng.random() < 0.5:
        made = mutate.data(rng, made[:1000]) + made[1000:]
    files["model.safetensors"] = made
    if rng.random() < 0.3:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(_shapes(), "model.safetensors")}
        files["model.safetensors.index.json"] = _mutated(rng, json.dumps(index).encode())
    return Case(files)


def run_weights(case: Case, room: Room) -> None:
    file = room.files / "model.safetensors"
    error = None
    try:
        read_headers([file])
        stored_tensors([file])
    except api.WhetError as refused:
        error = refused
    run_folder(case, room)
    if error is not None:
        raise error


ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "demo",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "revision": None,
}


def make_adapter(rng: Random) -> Case:
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    header: dict[str, Any] = {
        f"{stem}.lora_A.weight": {"dtype": "F32", "shape": [4, 96], "data_offsets": [0, 1536]},
        f"{stem}.lora_B.weight": {"dtype": "F32", "shape": [96, 4], "data_offsets": [1536, 3072]},
    }
    if rng.random() < 0.5:
        header = mutate.value(rng, header)
    made = weights(header, 3072)
    if rng.random() < 0.3:
        made = mutate.data(rng, made)
    return Case(
        {
            "adapter_config.json": _mutated(rng, json.dumps(ADAPTER).encode()),
            "adapter_model.safetensors": made,
        }
    )


def run_adapter(case: Case, room: Room) -> None:
    adapter_base(room.files)
    api.chat_target(str(room.files))


def run_adapter_weights(case: Case, room: Room) -> None:
    """As merging and the export of an adapter read it."""
    from whet.engine.export.adapter_weights import Adapter
    from whet.engine.export.targets.adapter_gguf import write_adapter_gguf

    Adapter(room.files)
    write_adapter_gguf(room.files, Path(MODEL_DIR), room.out / "adapter.gguf")


def run_checkpoint(case: Case, room: Room) -> None:
    """As the conversion to GGUF reads it."""
    from whet.engine.export.gguf.checkpoint import Checkpoint

    checkpoint = Checkpoint(room.files)
    for _, tensor in checkpoint.read(list(checkpoint.shapes)):
        tensor.float().sum()


TARGETS = (
    Target("configs", make_config, run_folder, share=4, in_ci=16),
    Target("tokenizers", make_tokenizer, run_tokenizer, share=4, in_ci=12),
    Target("tokenizers-in-llama.cpp", make_tokenizer, run_in_llama, share=1),
    Target("safetensors", make_weights, run_weights, share=6, in_ci=24),
    Target("adapters", make_adapter, run_adapter, share=8, in_ci=60),
    Target("adapter-weights", make_adapter, run_adapter_weights, share=3),
    Target("checkpoints", make_weights, run_checkpoint, share=3),
)
