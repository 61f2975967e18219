"""Recipes: defaults, overrides, and errors that name the place, the value and the right key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from whet.engine.errors import WhetError
from whet.engine.recipe import Recipe
from whet.engine.recipe_files import load_recipe, patched, recipe_from_text, settings_paths, shipped, to_yaml
from whet.engine.yaml_edit import set_key

MINIMAL = {"model": {"name": "demo"}, "data": {"train": "demo"}}


def write(path: Path, values: dict[str, object]) -> Path:
    file = path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def error_of(path: Path, *overrides: str, **sections: object) -> WhetError:
    with pytest.raises(WhetError) as caught:
        load_recipe(write(path, {**MINIMAL, **sections}), overrides)
    return caught.value


def test_defaults_are_the_common_sft_values() -> None:
    recipe = Recipe.model_validate(MINIMAL)
    training, adapter = recipe.training, recipe.adapter
    assert (training.learning_rate, training.weight_decay, training.warmup) == (2e-4, 0.001, 5)
    assert (training.batch_size, training.gradient_accumulation) == (2, 4)
    assert (training.scheduler, training.optimizer, training.seed) == ("linear", "adamw_8bit", 3407)
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.dropout) == ("lora", 16, 16, 0)
    assert len(adapter.target_modules) == 7


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.max_steps=30", 30),
        ("training.learning_rate=3e-4", 3e-4),
        ("export.gguf=[f16, q8_0]", ["f16", "q8_0"]),
        ("training.gradient_checkpointing=on", "on"),
        ("data.columns={prompt: question}", {"prompt": "question"}),
        ("model.revision=null", None),
    ],
)
def test_overrides_are_read_as_yaml(tmp_path: Path, override: str, read: object) -> None:
    recipe = load_recipe(write(tmp_path, dict(MINIMAL)), [override])
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(recipe, section), key) == read


@pytest.mark.parametrize(
    ("sections", "key", "line_and_hint"),
    [
        ({"training": {"learning_rte": 1}}, "training.learning_rte", "training.learning_rate"),
        ({"training": {"lr": 1}}, "training.lr", "training.learning_rate"),
        ({"lora_r": 8}, "lora_r", "adapter.rank"),
        ({"trainig": {}}, "trainig", "training"),
        ({"adapter": {"r": 8}}, "adapter.r", "adapter.rank"),
    ],
)
def test_unknown_keys_name_the_nearest(
    tmp_path: Path, sections: dict[str, object], key: str, line_and_hint: str
) -> None:
    error = error_of(tmp_path, **sections)
    assert error.code == "recipe.unknown_key"
    assert f" {key} " in error.message and "recipe.yaml:" in error.message
    assert error.hint == f"Did you mean {line_and_hint}?"


def test_wrong_values_are_named_with_place_and_value(tmp_path: Path) -> None:
    error = error_of(tmp_path, training={"batch_size": 0})
    assert error.code == "recipe.invalid"
    assert "training.batch_size = 0" in error.message
    line = (tmp_path / "recipe.yaml").read_text().splitlines().index("  batch_size: 0") + 1
    assert f"recipe.yaml:{line}:" in error.message


@pytest.mark.parametrize(
    ("sections", "both"),
    [
        ({"adapter": {"kind": "none"}, "model": {"name": "m", "precision": "nf4"}}, ("adapter.kind", "nf4")),
        ({"data": {"train": "a", "eval": "b", "eval_fraction": 0.1}}, ("data.eval", "data.eval_fraction")),
        ({"eval": {"early_stopping": 2}}, ("eval.early_stopping", "data.eval")),
        (
            {"adapter": {"kind": "none", "modules_to_save": ["lm_head"]}},
            ("adapter.modules_to_save", "adapter.kind"),
        ),
    ],
)
def test_impossible_combinations_name_both_settings(
    tmp_path: Path, sections: dict[str, object], both: tuple[str, str]
) -> None:
    error = error_of(tmp_path, **sections)
    assert error.code == "recipe.invalid"
    assert all(name in error.message for name in both)


def test_memory_that_no_machine_has_is_refused(tmp_path: Path) -> None:
    assert "training.max_memory_gib" in str(error_of(tmp_path, "training.max_memory_gib=1.0e+9"))


def test_gguf_types_are_known_before_anything_starts(tmp_path: Path) -> None:
    error = error_of(tmp_path, export={"gguf": ["f16", "q4_k_x"]})
    assert error.code == "recipe.invalid"
    assert "export.gguf" in error.message and "'q4_k_x'" in error.message and "q4_k_s" in error.message
    recipe = load_recipe(write(tmp_path, dict(MINIMAL)), ["export.gguf=[Q8_0, q4-k-m, q8_0]"])
    assert recipe.export.gguf == ["q8_0", "q4_k_m"]


@pytest.mark.parametrize("text", ["model: [", "- a\n- b\n", "model:\n\tname: demo\n"])
def test_broken_yaml_is_one_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(WhetError) as caught:
        load_recipe(file)
    assert caught.value.code == "recipe.yaml" and str(file) in caught.value.message


@pytest.mark.parametrize("kind", ["speech", "tts", "embedding", "classification", "reward"])
def test_models_that_hear_or_speak_are_asked_nothing(tmp_path: Path, kind: str) -> None:
    error = error_of(tmp_path, f"method.kind={kind}", sampling={"prompts": ["Who are you?"]})
    assert error.code == "recipe.invalid" and f"method.kind={kind} has none of" in error.message


def test_a_missing_recipe_names_the_nearest_shipped_one() -> None:
    with pytest.raises(WhetError, match="demmo") as caught:
        load_recipe("demmo")
    assert "demo" in caught.value.hint


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_valid_and_commented(name: str) -> None:
    from whet.engine.recipe_files import find_recipe

    assert load_recipe(name).name == name
    assert find_recipe(name).read_text().startswith("# ")


def test_patch_and_yaml_round_trip(tmp_path: Path) -> None:
    recipe = patched(load_recipe("demo"), {"training.batch_size": 1, "training.gradient_accumulation": 8})
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe
    assert (
        recipe.training.gradient_accumulation == 8 and recipe.adapter.rank == load_recipe("demo").adapter.rank
    )


def test_every_setting_is_in_the_schema() -> None:
    schema = Recipe.model_json_schema()
    paths = set(settings_paths())
    assert {"model.name", "training.learning_rate", "method.packing", "export.gguf"} <= paths
    for section in ("training", "adapter", "data"):
        definition = schema["properties"][section]
        reference = definition.get("$ref") or definition["allOf"][0]["$ref"]
        properties = schema["$defs"][reference.rsplit("/", 1)[-1]]["properties"]
        assert {path for path in paths if path.startswith(section + ".")} == {
            f"{section}.{name}" for name in properties
        }


ENDLESS = "n0: &n0 [1, 2]\n" + "".join(f"n{n + 1}: &n{n + 1} [*n{n}, *n{n}, *n{n}]\n" for n in range(20))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: 2024-13-45",
        "a: !!int abc",
        "a: !!bool x",
        "a: !!timestamp zz",
        "data: &a [*a]",
        ENDLESS,
        "training: {max_steps: " + "9" * 400 + "}",
        "training: {max_steps: " + "9" * 5000 + "}",
        "training: {learning_rate: .inf}",
        "model: {name: demo}\ndata: {train: demo}\ntraining: {epochs: 1.0e+308}",
        "training: {learning_rate: .nan}",
        'data: {system: "\\ud800"}',
    ],
)
def test_texts_that_fuzzing_got_a_traceback_out_of_are_refused(text: str) -> None:
    with pytest.raises(WhetError) as caught:
        recipe_from_text(text)
    assert caught.value.code.startswith("recipe.")
    assert len(str(caught.value)) < 1500


def test_a_key_inside_of_a_list_is_refused() -> None:
    with pytest.raises(WhetError, match="cannot be set inside"):
        set_key("method: {rewards: [a, b]}", "method.rewards.weight", 0.5)


def test_names_that_are_too_long_lead_nowhere() -> None:
    with pytest.raises(WhetError, match="No recipe"):
        load_recipe("a" * 5000)
