"""Set-ups without fault: families, formats, templates and methods that must raise no warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.embedding_cases import HEALTHY as EMBEDDINGS
from faults.harness import Healthy, Looked
from faults.healthy_machines import MACHINES
from faults.healthy_published import AS_PUBLISHED
from faults.healthy_rows import ROWS, family
from support import healthy_models as make
from support.plan_inputs import chat_recipe, gpu, machine
from support.tiny_runs import next_attempt, tiny_recipe

from whet.engine import api
from whet.engine.hardware import Machine
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe
from whet.engine.runs.store import RunStore

Look = Callable[[Path], Looked]
LINEAR = {"adapter__target_modules": "all-linear"}
EIGHT_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
HALF_B = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
          "num_attention_heads": 14, "num_key_value_heads": 2}  # fmt: skip
ONE_B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip


def sized(
    on: Machine,
    sizes: dict[str, int],
    data: make.Data = make.messages,
    *,
    model_type: str = "llama",
    **patch: Any,
) -> Look:
    """A model of billions of parameters, planned on another machine."""

    def look(folder: Path) -> Looked:
        template = {"llama": "llama-3.1", "qwen2": "qwen-2.5", "qwen3": "qwen-3"}[model_type]
        model = make.sized_model(folder / "model", model_type, template, **sizes)
        return Looked(make_plan(chat_recipe(model, data(folder), **patch), machine=on).findings)

    return look


def held_out(**patch: Any) -> Look:
    """Rows of their own to measure on."""

    def look(folder: Path) -> Looked:
        model = make.family_model(folder / "model", "llama", "llama-3.1")
        aside = str(make.messages(folder, 60, 50))
        wanted = chat_recipe(model, make.messages(folder), data__eval=aside, **patch)
        return Looked(make_plan(wanted, machine=machine()).findings)

    return look


def two_sources(folder: Path) -> Looked:
    model = make.family_model(folder / "model", "qwen2", "qwen-2.5")
    both = [str(make.sharegpt(folder)), str(make.alpaca(folder))]
    wanted = chat_recipe(model, make.messages(folder), data__train=both)
    return Looked(make_plan(wanted, machine=machine()).findings)


def really(recipe: Callable[[Path], Recipe]) -> Look:
    """Trained and exported in this process; all that the run found."""

    def look(folder: Path) -> Looked:
        from whet.engine.methods.jobs import run_job

        run = RunStore().create(make_plan(recipe(folder), machine=machine()), "test")
        context = next_attempt(run)
        run_job(context)
        context.close("finished")
        return Looked(api.run(run.id).findings)

    return look


def trained(folder: Path, rows: make.Data, **sections: dict[str, Any]) -> Recipe:
    """A few steps of the model that ships with whet; chat rows or text that it did not see."""
    quick = {"max_steps": 8, "learning_rate": 1e-3, "gradient_accumulation": 1}
    model = {"name": "demo", "max_length": 512}
    training = quick | sections.pop("training", {})
    return tiny_recipe(Path("demo"), rows(folder), model=model, training=training, **sections)


FAMILIES = (
    Healthy("llama, messages", family("llama", "llama-3.1", make.messages)),
    Healthy("llama with Llama 3's template, system messages", family("llama", "llama-3", make.with_system)),
    Healthy("llama-biased, chatml, parquet", family("llama-biased", "chatml", make.messages_parquet)),
    Healthy("mistral, sharegpt", family("mistral", "mistral", make.sharegpt)),
    Healthy("qwen2, alpaca", family("qwen2", "qwen-2.5", make.alpaca)),
    Healthy("qwen2 with windows, one JSON array", family("qwen2-window", "qwen-2.5", make.messages_json)),
    Healthy("qwen3, messages", family("qwen3", "qwen-3", make.messages)),
    Healthy("qwen3-biased, CSV", family("qwen3-biased", "qwen-3", make.alpaca_csv)),
    Healthy(
        "qwen3_moe, attention alone",
        family(
            "qwen3_moe",
            "qwen-3",
            make.messages,
            adapter__target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        ),
    ),
    Healthy("mixtral, all linear layers", family("mixtral", "mistral", make.sharegpt, **LINEAR)),
    Healthy("gemma, alpaca", family("gemma", "gemma", make.alpaca)),
    Healthy("gemma2, messages", family("gemma2", "gemma-2", make.messages)),
    Healthy("gemma3, sharegpt", family("gemma3", "gemma-3", make.sharegpt)),
    Healthy("phi3, fused projections", family("phi3", "phi-3", make.messages, **LINEAR)),
    Healthy("phi3-partial with Phi-4's template", family("phi3-partial", "phi-4", make.alpaca, **LINEAR)),
    Healthy("granite, chatml", family("granite", "chatml", make.messages)),
    Healthy("smollm3, chatml, prompt and completion", family("smollm3", "chatml", make.prompt_completion)),
    Healthy("smollm3 with windows, messages", family("smollm3-window", "chatml", make.messages)),
    Healthy("deepseek_v2, latent attention", family("deepseek_v2", "chatml", make.messages, **LINEAR)),
    Healthy("deepseek_v3, latent attention", family("deepseek_v3", "chatml", make.sharegpt, **LINEAR)),
)
TEMPLATES = (
    Healthy("base model, alpaca", family("llama", None, make.alpaca, data__template="alpaca")),
    Healthy("base model, vicuna", family("llama", None, make.sharegpt, data__template="vicuna")),
    Healthy("base model, zephyr", family("qwen2", None, make.messages, data__template="zephyr")),
    Healthy("base model, unsloth", family("mistral", None, make.messages, data__template="unsloth")),
    Healthy("base model, Llama 2", family("llama", None, make.messages, data__template="llama-2")),
    Healthy("base model, Mistral", family("mistral", None, make.sharegpt, data__template="mistral")),
    Healthy(
        "the model's template by its name",
        family("qwen2", "qwen-2.5", make.messages, data__template="qwen-2.5"),
    ),
    Healthy("chatml by name", family("qwen3", "chatml", make.with_system, data__template="chatml")),
)
FORMATS = (
    Healthy("continued pretraining", family("llama", None, make.texts)),
    Healthy(
        "continued pretraining on a folder, packed",
        family("mistral", None, make.text_folder, method__packing=True),
    ),
    Healthy(
        "continued pretraining with embeddings",
        family(
            "llama",
            None,
            make.texts,
            training__learning_rate=5e-5,
            adapter__modules_to_save=["embed_tokens", "lm_head"],
        ),
    ),
    Healthy("prompts and completions of a base model", family("llama", None, make.prompt_completion)),
    Healthy(
        "renamed columns",
        family(
            "llama",
            "llama-3.1",
            make.renamed_columns,
            data__format="prompt_completion",
            data__columns={"prompt": "question", "completion": "reply"},
        ),
    ),
    Healthy("all tokens supervised", family("llama", "llama-3.1", make.messages, method__supervise="all")),
    Healthy(
        "a system message for all", family("llama", "llama-3.1", make.messages, data__system="Be brief.")
    ),
    Healthy("two sources of different formats", two_sources),
    Healthy("held-out rows and early stopping", held_out(eval__early_stopping=3)),
    Healthy("a tenth held out", family("qwen2", "qwen-2.5", make.messages, data__eval_fraction=0.1)),
)
METHODS = (
    Healthy("LoRA of 8B on 80 GB", sized(machine(gpu(80)), EIGHT_B)),
    Healthy(
        "QLoRA of 8B on 24 GB",
        sized(
            machine(gpu(24, capability=(8, 9))),
            EIGHT_B,
            model__precision="nf4",
            training__gradient_checkpointing="on",
        ),
    ),
    Healthy(
        "QLoRA of 8B on an old 16 GB",
        sized(
            machine(gpu(16, capability=(7, 5))),
            EIGHT_B,
            model__precision="nf4",
            training__gradient_checkpointing="on",
            model__max_length=1024,
        ),
    ),
    Healthy(
        "8B in int8 on 48 GB", sized(machine(gpu(48, capability=(8, 6))), EIGHT_B, model__precision="int8")
    ),
    Healthy("8B in FP8 on 80 GB", sized(machine(gpu(80)), EIGHT_B, model__precision="fp8")),
    Healthy(
        "8B with rsLoRA of rank 64",
        sized(machine(gpu(80)), EIGHT_B, adapter__kind="rslora", adapter__rank=64),
    ),
    Healthy("1B with DoRA", sized(machine(gpu(24)), ONE_B, make.alpaca, adapter__kind="dora")),
    Healthy(
        "half a billion, all weights, packed",
        sized(
            machine(gpu(80)),
            HALF_B,
            make.sharegpt,
            model_type="qwen2",
            adapter__kind="none",
            training__learning_rate=2e-5,
            method__packing=True,
        ),
    ),
    Healthy("1B with noise on the embeddings", sized(machine(gpu(24)), ONE_B, method__neftune_alpha=5.0)),
    Healthy(
        "1B on a laptop's 8 GB",
        sized(
            machine(gpu(8, capability=(8, 6))),
            ONE_B,
            model__precision="nf4",
            training__batch_size=1,
            training__gradient_checkpointing="on",
        ),
    ),
    Healthy(
        "1B, merged and three GGUF types",
        sized(
            machine(gpu(24)),
            ONE_B,
            make.messages,
            export__gguf=["f16", "q8_0", "q4_k_m"],
            export__merged=True,
        ),
    ),
    Healthy(
        "half a billion on a CPU",
        sized(machine(ram_gib=32), HALF_B, model_type="qwen2", model__max_length=512),
    ),
    Healthy(
        "1B, cosine schedule, samples and a tenth held out",
        sized(
            machine(gpu(24)),
            ONE_B,
            training__scheduler="cosine",
            training__warmup=0.03,
            training__epochs=3,
            data__eval_fraction=0.1,
            sampling__prompts=["What is a rank?"],
        ),
    ),
    Healthy(
        "half a billion with thoughts, Qwen 3",
        sized(machine(gpu(12)), HALF_B | {"head_dim": 64}, model_type="qwen3", export__gguf=["q8_0"]),
    ),
)
REALLY = (
    Healthy(
        "really: LoRA, merged, GGUF, Modelfile",
        really(
            lambda folder: trained(folder, make.demo_messages, export={"gguf": ["q8_0"], "merged": True}),
        ),
    ),
    Healthy(
        "really: all weights, alpaca, held out",
        really(
            lambda folder: trained(
                folder,
                make.demo_alpaca,
                adapter={"kind": "none", "dropout": 0.0},
                data={"eval_fraction": 0.1},
                training={"learning_rate": 1e-4},
            )
        ),
    ),
    Healthy(
        "really: plain text, packed, adapter alone",
        really(lambda folder: trained(folder, make.demo_texts, method={"packing": True})),
    ),
)
HEALTHY: tuple[Healthy, ...] = (
    *FAMILIES, *TEMPLATES, *AS_PUBLISHED, *FORMATS, *ROWS, *METHODS, *MACHINES, *EMBEDDINGS, *REALLY,
)  # fmt: skip
