"""Broken set-ups of the load phase: what lies in a model's folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.harness import Fault, Looked, planned
from support.broken_models import add_token, change_json, change_weights, setup, token_id, whole_model
from support.tiny_runs import tiny_recipe

from whet.engine.findings import Finding
from whet.engine.recipe import Recipe

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"


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


def trimmed_after_the_plan(folder: Path, resized: int = 0) -> Looked:
    """The weights came with the download, after the rows were tokenised: fewer rows than config.json said."""
    from whet.engine.checks.loaded import look_at_loaded
    from whet.engine.methods.sft.first_look import loaded_facts
    from whet.engine.models.loading import Precision, load_model

    path = folder / "model"
    if not path.exists():
        whole_model(path)
        rows = token_id(path, "<|assistant|>")

        def trim(tensors: dict[str, Any]) -> None:
            for name in (EMBEDDING, HEAD):
                tensors[name] = tensors[name][:rows].clone()

        change_weights(path, trim)
        change_json(path / "config.json", vocab_size=rows)
    handle = load_model(path, Precision())
    if resized:
        handle.model.resize_token_embeddings(resized)
    findings = look_at_loaded(loaded_facts(handle, tiny_recipe(path, path), largest_id=399))
    return Looked(findings, lambda finding: trimmed_after_the_plan(folder, finding.evidence["tokenizer"]))


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
    Fault("L02", "rows of the download are fewer", trimmed_after_the_plan, "resize the embedding", "error"),
    Fault("L03", "config of another size", config_of_another_size, '"vocab_size": 400', "error"),
    Fault("L03", "pad token without a row", pad_without_row, "pad_token"),
    Fault("L04", "flag says tied, files hold a head", head_of_its_own, '"tie_word_embeddings": false',
          "error"),
    Fault("L04", "head of a tied model trained alone", head_trained_apart, "ensure_weight_tying=True",
          "error"),
    Fault("E08", "a file of the weights is missing", lost_shard, "safetensors files there", "error"),
    Fault("E08", "a layer is missing", lost_layer, "Download the model again", "error"),
    Fault("E08", "config of a narrower model", narrower_config, "config.json", "error"),
    Fault("E08", "config of a shallower model", fewer_layers, "num_hidden_layers"),
)  # fmt: skip
