"""Broken set-ups of the load phase."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.harness import Fault, Looked, planned
from support.broken_models import add_token, change_json, change_weights, token_id, whole_model
from support.plan_inputs import gpu, machine
from support.tiny_models import write_tokenizer
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.findings import Finding
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def setup(
    folder: Path, family: str = "llama", *, model: dict[str, Any] | None = None, **sections: Any
) -> Recipe:
    """A healthy recipe: a tiny model of its own, and 120 chats."""
    path = whole_model(folder / "model", family, **(model or {}))
    data = {"data": {"train": str(write_chat_rows(folder / "rows.jsonl", 1000))}}
    return tiny_recipe(path, Path("rows"), **data, adapter={"dropout": 0.0}, **sections)


def copied(source: Path | str, target: Path) -> None:
    """Put a file back."""
    shutil.copy(source, target)


def by_hand(recipe: Recipe, mend: Callable[[Path], None]) -> Callable[[Finding], Recipe]:
    """The fix is a sentence about the model's files, and this does what it says."""

    def do(finding: Finding) -> Recipe:
        mend(Path(recipe.model.name))
        return recipe

    return do


# --- L01


def untrained_end(folder: Path) -> Looked:
    """Llama 3's base models: the rows of the chat markers are zero."""
    recipe = setup(folder)
    path = Path(recipe.model.name)
    end = token_id(path, "<|turn_end|>")

    def zero(tensors: dict[str, Any]) -> None:
        tensors[EMBEDDING][end] = 0

    change_weights(path, zero)
    return planned(recipe)


def rows_alike(folder: Path) -> Looked:
    """Reserved tokens that were all given one row."""
    recipe = setup(folder, "qwen2", model={"tied": True})
    path = Path(recipe.model.name)
    roles = [token_id(path, token) for token in ("<|user|>", "<|assistant|>", "<|system|>")]

    def copy(tensors: dict[str, Any]) -> None:
        tensors[EMBEDDING][roles] = tensors[EMBEDDING][roles[0]].clone()

    change_weights(path, copy)
    return planned(recipe)


# --- L02


def words_added(folder: Path) -> Looked:
    """Words of the trade were added to the tokenizer, which cuts the rows into them at once."""
    from tokenizers import Tokenizer

    recipe = setup(folder)
    path = Path(recipe.model.name)
    own = shutil.copy(path / "tokenizer.json", folder / "own.json")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens(["model", "token"])
    tokenizer.save(str(path / "tokenizer.json"))

    def put_back(path: Path) -> None:
        shutil.copy(own, path / "tokenizer.json")

    return planned(recipe, by_hand(recipe, put_back))


def trimmed_embedding(folder: Path) -> Looked:
    """An embedding cut to fewer rows than the tokenizer has tokens, config.json with it."""
    recipe = setup(folder)
    path = Path(recipe.model.name)
    rows = token_id(path, "<|assistant|>")

    def trim(tensors: dict[str, Any]) -> None:
        for name in (EMBEDDING, HEAD):
            tensors[name] = tensors[name][:rows].clone()

    change_weights(path, trim)
    change_json(path / "config.json", vocab_size=rows)

    def resize(finding: Finding) -> Recipe:
        assert finding.fix is not None and finding.fix.command is not None
        python = finding.fix.command.replace("python ", f"{sys.executable} -P ", 1)
        subprocess.run(python, shell=True, check=True, capture_output=True)
        whole = {"modules_to_save": ["embed_tokens", "lm_head"], "dropout": 0.0}
        model = {"name": f"{path}-resized", "max_length": 128}
        return tiny_recipe(path, Path(str(recipe.data.train)), model=model, adapter=whole)

    return planned(recipe, resize)


# --- L03


def config_of_another_size(folder: Path) -> Looked:
    recipe = setup(folder)
    path = Path(recipe.model.name)
    change_json(path / "config.json", vocab_size=512)
    return planned(recipe, by_hand(recipe, lambda p: change_json(p / "config.json", vocab_size=400)))


def pad_without_row(folder: Path) -> Looked:
    """A pad token was added and never given a row."""
    recipe = setup(folder)
    path = Path(recipe.model.name)
    add_token(path, "<pad>")
    file = "tokenizer_config.json"
    change_json(path / file, pad_token="<pad>")
    return planned(recipe, by_hand(recipe, lambda p: change_json(p / file, pad_token="<|pad|>")))


# --- L04


def head_of_its_own(folder: Path) -> Looked:
    """A head that was trained apart is in the files, the flag still says tied."""
    recipe = setup(folder, model={"tied": True})
    path = Path(recipe.model.name)

    def add(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[EMBEDDING] + 0.01

    change_weights(path, add)
    return planned(
        recipe, by_hand(recipe, lambda p: change_json(p / "config.json", tie_word_embeddings=False))
    )


def head_trained_apart(folder: Path, tying: bool = False) -> Looked:
    """PEFT was told to train the head alone of a model whose head is the embedding."""
    from peft import LoraConfig, get_peft_model

    from whet.engine.checks.loaded import look_at_loaded
    from whet.engine.methods.sft.first_look import loaded_facts
    from whet.engine.models.loading import Precision, load_model

    path = folder / "model"
    if not path.exists():
        whole_model(path, tied=True)
    handle = load_model(path, Precision())
    config = LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"], ensure_weight_tying=tying)
    handle.model = get_peft_model(handle.model, config)
    findings = look_at_loaded(loaded_facts(handle, tiny_recipe(path, path)))
    return Looked(findings, lambda finding: head_trained_apart(folder, tying=True))


# --- L05


def gemma(path: Path, kind: str) -> Path:
    """A tiny Gemma with a tokenizer and chat template."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    path.mkdir(parents=True)
    ids = write_tokenizer(path)
    family: Any = CONFIG_MAPPING[kind]
    config = family(
        vocab_size=ids["rows"], hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        bos_token_id=ids["<|begin|>"], eos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|pad|>"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [ids["<|turn_end|>"], ids["<|endoftext|>"]]
    model.save_pretrained(path)
    return path


def gemma_recipe(folder: Path, kind: str, **training: Any) -> Recipe:
    rows = write_chat_rows(folder / "rows.jsonl", 1000)
    return tiny_recipe(gemma(folder / "model", kind), rows, training=training, adapter={"dropout": 0.0})


def gemma_on_a_t4(folder: Path) -> Looked:
    return planned(gemma_recipe(folder, "gemma2"), machine=machine(gpu(16, capability=(7, 5))))


def gemma_in_fp16(folder: Path) -> Looked:
    return planned(gemma_recipe(folder, "gemma3_text", precision="fp16"), machine=machine(gpu(80)))


def overflowing_weights(folder: Path, compute: str = "fp16") -> Looked:
    """Numbers that fp32 holds and fp16 does not: the probe runs one batch and names the module."""
    from support.live_runs import plain_trainer

    from whet.engine.checks.loaded import look_at_loaded
    from whet.engine.methods.sft.first_look import loaded_facts, overflow
    from whet.engine.methods.sft.self_tests import collated, short_rows
    from whet.engine.models.loading import Precision, load_model

    path = folder / "model"
    if not path.exists():
        whole_model(path)

        def enlarge(tensors: dict[str, Any]) -> None:
            tensors[UP] *= 3e4

        change_weights(path, enlarge)
    handle = load_model(path, Precision(compute_dtype=compute, base_precision=compute))
    trainer, rows = plain_trainer(handle, folder / f"out-{compute}")
    module = overflow(trainer, collated(trainer, short_rows(rows)[:1])) if compute == "fp16" else None
    findings = look_at_loaded(loaded_facts(handle, tiny_recipe(path, path), overflow=module))
    return Looked(findings, lambda finding: overflowing_weights(folder, "fp32"))


# --- L06 to L09


def bf16_on_a_t4(folder: Path) -> Looked:
    return planned(setup(folder, training={"precision": "bf16"}), machine=machine(gpu(16, capability=(7, 5))))


def fp16_on_a_cpu(folder: Path) -> Looked:
    return planned(setup(folder, training={"precision": "fp16"}), machine=machine())


def full_training_of_four_bits(folder: Path) -> Looked:
    """A checkpoint that bitsandbytes quantised, all of whose weights are to train."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    recipe = setup(folder)
    path = Path(recipe.model.name)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=settings, device_map={"": "cpu"})
    model.save_pretrained(path)
    return planned(
        tiny_recipe(path, Path(str(recipe.data.train)), adapter={"kind": "none"}), machine=machine()
    )


def half_a_table(folder: Path) -> Looked:
    """Embedding and head are one table, which is to be held in two ways."""
    sections = {"model": {"embedding_precision": "int8", "head_precision": "16bit"}}
    rows = write_chat_rows(folder / "rows.jsonl", 1000)
    path = whole_model(folder / "model", tied=True)
    return planned(tiny_recipe(path, rows, adapter={"dropout": 0.0}, **sections), machine=machine())


def with_adapter(family: str = "llama", on: Any = None, **adapter: Any) -> Callable[[Path], Looked]:
    def look(folder: Path) -> Looked:
        rows = write_chat_rows(folder / "rows.jsonl", 1000)
        path = whole_model(folder / "model", family)
        options = {} if on is None else {"machine": on}
        return planned(tiny_recipe(path, rows, adapter={"dropout": 0.0, **adapter}), **options)

    return look


def frozen_adapter(folder: Path, frozen: bool = True) -> Looked:
    """An adapter that was loaded for answering: nothing has a gradient."""
    from peft import LoraConfig, get_peft_model

    from whet.engine.checks.loaded import look_at_loaded
    from whet.engine.methods.sft.first_look import loaded_facts
    from whet.engine.models.loading import Precision, load_model

    path = folder / "model"
    if not path.exists():
        whole_model(path)
    handle = load_model(path, Precision())
    config = LoraConfig(target_modules="all-linear", inference_mode=frozen)
    handle.model = get_peft_model(handle.model, config)
    findings = look_at_loaded(loaded_facts(handle, tiny_recipe(path, path)))
    return Looked(findings, lambda finding: frozen_adapter(folder, frozen=False))


# --- L11, L12


def olmo(path: Path, width: int) -> Path:
    """A tiny model of a family off the fast path, with the tokenizer of the others."""
    from transformers import AutoModelForCausalLM, GenerationConfig, OlmoConfig

    whole_model(path)
    own = json.loads((path / "config.json").read_text(encoding="utf-8"))
    ids = {key: own[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = OlmoConfig(
        vocab_size=400, hidden_size=64, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, **ids,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig.from_pretrained(path)
    model.save_pretrained(path)
    return path


def wide_batches(folder: Path) -> Looked:
    rows = write_chat_rows(folder / "rows.jsonl", 1000)
    batches = {"batch_size": 64, "gradient_accumulation": 1, "gradient_checkpointing": "off"}
    recipe = tiny_recipe(olmo(folder / "model", 1024), rows, adapter={"dropout": 0.0}, training=batches)
    return planned(recipe, machine=machine(gpu(0.95)))


def wide_adapter(folder: Path) -> Looked:
    """An adapter larger than its model, with its optimizer's states in fp32."""
    rows = write_chat_rows(folder / "rows.jsonl", 1000)
    path = whole_model(folder / "model", wide=True)
    recipe = tiny_recipe(path, rows, adapter={"rank": 2048, "dropout": 0.0})
    return planned(recipe, machine=machine(gpu(1.1)))


def too_little_after_all(folder: Path) -> Looked:
    """The plan saw room that is not there: the process may not have it. Training meets the allocator's no."""
    from support.live_runs import trained, with_memory_of

    rows = write_chat_rows(folder / "rows.jsonl", 1000)
    batches = {"batch_size": 64, "gradient_accumulation": 1, "gradient_checkpointing": "off", "max_steps": 2}
    recipe = tiny_recipe(olmo(folder / "model", 8192), rows, adapter={"dropout": 0.0}, training=batches)

    def look(recipe: Recipe) -> Looked:
        with with_memory_of(600 << 20):
            findings = trained(recipe)
        return Looked(findings, lambda finding: look(patched(recipe, smallest(finding))))

    return look(recipe)


def smallest(finding: Finding) -> dict[str, Any]:
    """Of the alternatives that a finding names, the one that needs the least."""
    return dict(finding.evidence["alternatives"][0]["patch"])


def outliers(norm: str, layers: Sequence[str], factor: float) -> Callable[[Path], Looked]:
    """One input channel so large that eight bits hold nothing else of a row; norms take it back again."""

    def look(folder: Path) -> Looked:
        from support.live_runs import trained

        from whet.engine.demo import MODEL_DIR, TRAIN_FILE

        path = Path(shutil.copytree(MODEL_DIR, folder / "model"))

        def stretch(tensors: dict[str, Any]) -> None:
            for name, tensor in tensors.items():
                if norm in name:
                    tensor[7] /= factor
                if any(layer in name for layer in layers):
                    tensor[:, 7] *= factor

        change_weights(path, stretch)
        model = {"precision": "fp8", "max_length": 128, "name": str(path)}
        recipe = tiny_recipe(
            path, Path(TRAIN_FILE), model=model, adapter={"dropout": 0.0}, training={"max_steps": 1}
        )

        def mend(finding: Finding) -> Looked:
            assert finding.fix is not None
            return Looked(trained(patched(recipe, finding.fix.patch)))

        return Looked(trained(recipe), mend)

    return look


# --- E08


def lost_shard(folder: Path) -> Looked:
    """A download that stopped between two files."""
    from transformers import AutoModelForCausalLM

    recipe = setup(folder)
    path = Path(recipe.model.name)
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="200KB")
    shard = sorted(path.glob("model-*.safetensors"))[-1]
    away = shard.rename(folder / shard.name)
    return planned(recipe, by_hand(recipe, lambda p: copied(away, p / away.name)))


def lost_layer(folder: Path) -> Looked:
    """One weight of one layer is not in the file."""
    recipe = setup(folder)
    path = Path(recipe.model.name)
    whole = shutil.copy(path / "model.safetensors", folder / "whole.safetensors")

    def lose(tensors: dict[str, Any]) -> None:
        del tensors[UP]

    change_weights(path, lose)
    return planned(recipe, by_hand(recipe, lambda p: copied(whole, p / "model.safetensors")))


def narrower_config(folder: Path) -> Looked:
    """config.json is another model's, with a narrower MLP."""
    recipe = setup(folder, "qwen3")
    path = Path(recipe.model.name)
    change_json(path / "config.json", intermediate_size=96)
    return planned(recipe, by_hand(recipe, lambda p: change_json(p / "config.json", intermediate_size=128)))


def fewer_layers(folder: Path, layers: int = 1) -> Looked:
    """config.json says one layer, the files hold two: half the model would be thrown away."""
    from whet.engine.checks.loaded import look_at_loaded
    from whet.engine.methods.sft.first_look import loaded_facts
    from whet.engine.models.loading import Precision, load_model

    path = folder / "model"
    if not path.exists():
        whole_model(path)
    change_json(path / "config.json", num_hidden_layers=layers)
    findings = look_at_loaded(loaded_facts(load_model(path, Precision()), tiny_recipe(path, path)))
    return Looked(findings, lambda finding: fewer_layers(folder, layers=2))


FAULTS: tuple[Fault, ...] = (
    Fault("L01", "end of turn with a zero row", untrained_end,
          {"adapter.modules_to_save": ["embed_tokens", "lm_head"]}),
    Fault("L01", "role markers share one row", rows_alike, {"adapter.modules_to_save": ["embed_tokens"]}),
    Fault("L02", "words added to the tokenizer", words_added, "own tokenizer", "error"),
    Fault("L02", "embedding with rows cut off", trimmed_embedding, "resize_token_embeddings(400)", "error"),
    Fault("L03", "config of another size", config_of_another_size, '"vocab_size": 400', "error"),
    Fault("L03", "pad token without a row", pad_without_row, "pad_token"),
    Fault("L04", "flag says tied, files hold a head", head_of_its_own, '"tie_word_embeddings": false',
          "error"),
    Fault("L04", "head of a tied model trained alone", head_trained_apart, "ensure_weight_tying=True",
          "error"),
    Fault("L05", "Gemma 2 on a GPU without bf16", gemma_on_a_t4, {"training.precision": "fp32"}),
    Fault("L05", "Gemma 3 asked into fp16", gemma_in_fp16, {"training.precision": "auto"}),
    Fault("L05", "weights beyond fp16's range", overflowing_weights, {"training.precision": "fp32"}, "error"),
    Fault("L06", "bf16 on a GPU without it", bf16_on_a_t4, {"training.precision": "fp16"}, "error"),
    Fault("L06", "fp16 on a CPU", fp16_on_a_cpu, {"training.precision": "auto"}, "error"),
    Fault("L07", "all weights of a 4-bit checkpoint", full_training_of_four_bits, {"adapter.kind": "lora"},
          "error"),
    Fault("L07", "one table held in two ways", half_a_table,
          {"model.embedding_precision": "16bit", "model.head_precision": "16bit"}, "error"),
    Fault("L08", "biases train", with_adapter(bias="lora_only"), {"adapter.bias": "none"}, "note"),
    Fault("L08", "DoRA", with_adapter("qwen2", kind="dora"), {"adapter.kind": "lora"}, "note"),
    Fault("L08", "dropout on a GPU", with_adapter(on=machine(gpu(80)), dropout=0.1), {"adapter.dropout": 0.0},
          "note"),
    Fault("L09", "names of another family", with_adapter(target_modules=["query", "value"]),
          {"adapter.target_modules": "all-linear"}, "error"),
    Fault("L09", "unknown module to save", with_adapter(modules_to_save=["score"]),
          {"adapter.modules_to_save": []}, "error"),
    Fault("L09", "adapter loaded for answering", frozen_adapter, {"adapter.target_modules": "all-linear"},
          "error"),
    Fault("L11", "micro-batches too wide", wide_batches,
          {"training.batch_size": 32, "training.gradient_accumulation": 2}, "error"),
    Fault("L11", "an adapter too wide", wide_adapter, {"training.optimizer": "adamw_8bit"}, "error"),
    Fault("L11", "memory the plan thought was there", too_little_after_all, "micro-batches", "error"),
    Fault("L12", "outliers in attention", outliers("input_layernorm", ("q_proj", "k_proj", "v_proj"), 4e5),
          {"model.precision": "auto"}),
    Fault("L12", "outliers in the MLP", outliers("post_attention_layernorm", ("gate_proj", "up_proj"), 1e6),
          {"model.precision": "auto"}),
    Fault("E08", "a file of the weights is missing", lost_shard, "safetensors files there", "error"),
    Fault("E08", "a layer is missing", lost_layer, "Download the model again", "error"),
    Fault("E08", "config of a narrower model", narrower_config, "config.json", "error"),
    Fault("E08", "config of a shallower model", fewer_layers, "num_hidden_layers"),
)  # fmt: skip
