"""Broken set-ups of the load phase: number formats, adapters, memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.harness import Fault, Looked, planned
from support.broken_models import change_weights, setup, whole_model
from support.plan_inputs import gpu, machine
from support.tiny_models import write_tokenizer
from support.tiny_runs import tiny_recipe, write_chat_rows

from whet.engine.findings import Finding
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import patched

UP = "model.layers.1.mlp.up_proj.weight"


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


def fp8_on_a_t4(folder: Path) -> Looked:
    """Eight bits are held and expanded again for every product."""
    recipe = setup(folder, model={"wide": True})
    asked = patched(recipe, {"model.precision": "fp8"})
    return planned(asked, machine=machine(gpu(16, capability=(7, 5))))


def kernels_that_do_not_launch(folder: Path) -> Looked:
    """Triton is told to compute where it has no device."""
    import torch
    from support.fake_surroundings import after, command_of

    from whet.engine.checks.loaded import LoadedFacts, look_at_loaded
    from whet.engine.methods.sft.first_look import launch
    from whet.kernels.backend import forced

    recipe = setup(folder)

    def look(backend: str) -> Looked:
        with forced(backend):
            said = launch(torch.device("cpu"))
        facts = LoadedFacts(recipe, "fp32", trainable=1, kernel_failure=said)
        return Looked(look_at_loaded(facts), mend)

    def mend(finding: Finding) -> Looked:
        variable = command_of(finding).partition(" ")[0]
        return look(after(f"export {variable}", {})["WHET_KERNELS"])

    return look("triton")


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


FAULTS: tuple[Fault, ...] = (
    Fault("L05", "Gemma 2 on a GPU without bf16", gemma_on_a_t4, {"training.precision": "fp32"}),
    Fault("L05", "Gemma 3 asked into fp16", gemma_in_fp16, {"training.precision": "auto"}),
    Fault("L05", "weights beyond fp16's range", overflowing_weights, {"training.precision": "fp32"}, "error"),
    Fault("L06", "bf16 on a GPU without it", bf16_on_a_t4, {"training.precision": "fp16"}, "error"),
    Fault("L06", "fp16 on a CPU", fp16_on_a_cpu, {"training.precision": "auto"}, "error"),
    Fault("L07", "all weights of a 4-bit checkpoint", full_training_of_four_bits, {"adapter.kind": "lora"},
          "error"),
    Fault("L07", "one table held in two ways", half_a_table,
          {"model.embedding_precision": "16bit", "model.head_precision": "16bit"}, "error"),
    Fault("L07", "FP8 without units for it", fp8_on_a_t4, {"model.precision": "auto"}, "note"),
    Fault("L07", "kernels that do not launch", kernels_that_do_not_launch, "WHET_KERNELS=reference", "error"),
    Fault("L08", "biases train", with_adapter(bias="lora_only"), {"adapter.bias": "none"}, "note"),
    Fault("L08", "DoRA", with_adapter("qwen2", kind="dora"), {"adapter.kind": "lora"}, "note"),
    Fault("L08", "dropout on a GPU", with_adapter(on=machine(gpu(80)), dropout=0.1), {"adapter.dropout": 0.0},
          "note"),
    Fault("L09", "names of another family", with_adapter(target_modules=["query", "value"]),
          {"adapter.target_modules": "all-linear"}, "error"),
    Fault("L09", "names in capitals", with_adapter(target_modules=["Q_proj", "V_proj"]),
          {"adapter.target_modules": "all-linear"}, "error"),
    Fault("L09", "a fused family's projections named apart",
          with_adapter("phi3", target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]),
          {"adapter.target_modules": "all-linear"}),
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
)  # fmt: skip
