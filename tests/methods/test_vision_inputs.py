"""What whet makes of conversations with images is what transformers' own processors make of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_vision import SEEING, build_seeing, colour
from transformers import AutoProcessor, AutoTokenizer

from whet.engine.data.image_rows import conversation_of
from whet.engine.data.rows import RowError
from whet.engine.errors import WhetError
from whet.engine.methods.vision.inputs import padded, seen_by
from whet.engine.methods.vision.layers import chosen_layers, kind_of, part_of
from whet.engine.methods.vision.loading import linear_layers, load_image_processor, load_seeing
from whet.engine.methods.vision.section import VisionSection
from whet.engine.methods.vision.trainer import answer_logits
from whet.engine.models.facts import read_model_facts
from whet.engine.models.image_tokens import fitted_size, image_tokens, read_image_tokens
from whet.engine.models.loading import Precision

PROCESSORS = {
    "llava": "llava.processing_llava:LlavaProcessor",
    "gemma3": "gemma3.processing_gemma3:Gemma3Processor",
    "mllama": "mllama.processing_mllama:MllamaProcessor",
}
"""Those of the other families want torchvision: see the test for machines that have it."""
SIZES = [(28, 28), (30, 61), (64, 33), (100, 20), (57, 57), (640, 480), (17, 90)]
SWITCHES = ("finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules",
            "finetune_mlp_modules")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeing")
    for name in SEEING:
        build_seeing(made / name, name)
    return made


def turns(*images: Any) -> dict[str, Any]:
    """A question about two pictures, an answer, and more of the same without any."""
    first, second = images
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": first},
                                         {"type": "text", "text": "the river"},
                                         {"type": "image", "image": second},
                                         {"type": "text", "text": " or"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "the house"}]},
            {"role": "user", "content": "why"},
            {"role": "assistant", "content": "day"},
        ]
    }  # fmt: skip


def compared(folder: Path, name: str, processor: Any, tokenizer: Any) -> None:
    """Ids, pixels and what goes with them, of a conversation with two pictures; labels on answers alone."""
    seeing = load_seeing(folder / name, Precision())
    pictures = [colour("red", (40, 28)), colour("blue", (28, 60))]
    messages, values = conversation_of(turns(*pictures))
    row = seeing.encoder.encode(messages, [one.size for one in values])
    own = padded([row.input_ids], [row.labels], 0)["input_ids"][:, : len(row.input_ids)]
    ours = {"input_ids": own} | seeing.inputs([values], own)
    listed = [
        {**one, "content": [{"type": "text", "text": one["content"]}]}
        if isinstance(one["content"], str) and name == "llava"
        else one
        for one in messages
    ]
    text = processor.apply_chat_template(listed, tokenize=False)
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    theirs = processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=not begins)
    assert sorted(ours) == sorted(set(theirs) - {"attention_mask"})
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key].to(value.dtype), msg=f"{name}: {key}")
    answers = tokenizer.decode([label for label in row.labels if label != -100])
    assert [one.strip() for one in answers.split("<|turn_end|>")[:2]] == ["the house", "day"]
    reserved = seeing.encoder.reserved_ids
    assert reserved & set(row.input_ids) and not reserved & set(row.labels)


@pytest.mark.parametrize("name", PROCESSORS)
def test_tokens_and_pixels_are_those_of_the_models_own_processor(folder: Path, name: str) -> None:
    module, kind = PROCESSORS[name].split(":")
    settings = {key: value for key, value in SEEING[name].processor.items() if key != "processor_class"}
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    make = getattr(import_module(f"transformers.models.{module}"), kind)
    images = load_image_processor(folder / name)
    compared(
        folder, name, make(images, tokenizer, chat_template=tokenizer.chat_template, **settings), tokenizer
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", SEEING)
def test_the_same_where_transformers_has_torchvision(folder: Path, name: str) -> None:
    """Its processors want it for Qwen-VL and Pixtral; pixels are made on Pillow in both."""
    processor = AutoProcessor.from_pretrained(folder / name)
    processor.image_processor = load_image_processor(folder / name)
    processor.chat_template = processor.tokenizer.chat_template
    compared(folder, name, processor, processor.tokenizer)


@pytest.mark.parametrize("name", SEEING)
def test_a_rows_loss_does_not_depend_on_its_batch(folder: Path, name: str) -> None:
    """Two images, none, and one behind a text: in one batch as each by itself."""
    seeing = load_seeing(folder / name, Precision())
    two = turns(colour("red", (40, 28)), colour("blue", (28, 60)))["messages"]
    shown = [{"type": "text", "text": "see"}, {"type": "image", "image": colour("green")}]
    one = [{"role": "user", "content": shown}, two[1]]
    prepared = []
    for told in (two, two[2:], one):
        messages, images = conversation_of({"messages": told})
        row = seeing.encoder.encode(messages, [image.size for image in images])
        prepared.append((row.input_ids, row.labels, images))

    def loss(rows: Sequence[tuple[list[int], list[int], list[Any]]]) -> float:
        batch = padded([ids for ids, _, _ in rows], [labels for _, labels, _ in rows], seeing.handle.pad_id)
        batch |= seeing.inputs([images for _, _, images in rows], batch["input_ids"])
        with torch.no_grad():
            parts = answer_logits(seeing.handle.model, batch)
            return sum(
                float(
                    torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
                )
                for logits, wanted in parts
            )

    assert loss(prepared) == pytest.approx(sum(loss([row]) for row in prepared), rel=1e-5)
    ids, labels, images = prepared[0]
    batch = padded([ids], [labels], seeing.handle.pad_id)
    with torch.no_grad():
        own = seeing.handle.model(**batch, **seeing.inputs([images], batch["input_ids"])).loss
    assert loss(prepared[:1]) == pytest.approx(float(own) * sum(label != -100 for label in labels), rel=1e-5)


@pytest.mark.parametrize("name", SEEING)
def test_how_many_tokens_an_image_has_is_known_from_its_size(folder: Path, name: str) -> None:
    """The image processor is asked, and the model, which refuses features without a token of their own."""
    seeing = load_seeing(folder / name, Precision())
    images = seeing.encoder.images
    for size in SIZES:
        ids = torch.tensor([[images.filler_id]])
        pixels = seeing.inputs([[colour("red", size)]], ids)
        count = images.text(*size).count(images.filler)
        if images.kind == "grid":
            assert int(pixels["image_grid_thw"].prod()) == images.patches(*size)
            assert int(pixels["image_grid_thw"].prod()) // images.merge**2 == count
        elif images.kind == "rows":
            down, across = (int(side) // (images.patch * images.merge) for side in pixels["image_sizes"][0])
            assert count == down * across and tuple(pixels["image_sizes"][0].tolist()) == images.seen(*size)
        else:
            assert tuple(pixels["pixel_values"].shape[-2:]) == images.seen(*size)
    with pytest.raises(ValueError, match="200 to 1"):
        read_image_tokens(folder / "qwen3_vl", lambda id: "<|image_pad|>").text(3000, 10)


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[tuple[int, int], int]]] = {
    "llava-1.5": (
        {"model_type": "llava", "image_token_index": 32000, "vision_feature_layer": -2,
         "vision_feature_select_strategy": "default",
         "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
         "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}},
        {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "size": {"shortest_edge": 336}},
        {}, {(1000, 500): 576, (300, 300): 576},
    ),
    "pixtral-12b": (
        {"model_type": "llava", "image_token_index": 10, "vision_feature_layer": -1,
         "vision_feature_select_strategy": "full",
         "text_config": {"model_type": "mistral", "hidden_size": 5120, "num_hidden_layers": 40},
         "vision_config": {"model_type": "pixtral", "image_size": 1024, "patch_size": 16}},
        {"size": {"longest_edge": 1024}, "patch_size": {"height": 16, "width": 16}},
        {"patch_size": 16}, {(1024, 1024): 4096, (512, 256): 512, (2048, 1024): 2048},
    ),
    "qwen2.5-vl": (
        {"model_type": "qwen2_5_vl", "image_token_id": 151655, "hidden_size": 2048, "num_hidden_layers": 36,
         "num_attention_heads": 16, "vocab_size": 151936,
         "vision_config": {"depth": 32, "hidden_size": 1280, "patch_size": 14, "spatial_merge_size": 2}},
        {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
        {}, {(1000, 750): 36 * 27, (300, 300): 11 * 11},
    ),
    "gemma-3": (
        {"model_type": "gemma3", "image_token_index": 262144, "boi_token_index": 255999,
         "eoi_token_index": 256000, "mm_tokens_per_image": 256,
         "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34},
         "vision_config": {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14}},
        {"size": {"height": 896, "width": 896}}, {"image_seq_length": 256}, {(640, 480): 256},
    ),
    "llama-3.2-vision": (
        {"model_type": "mllama", "image_token_index": 128256,
         "text_config": {"model_type": "mllama_text_model", "hidden_size": 4096, "num_hidden_layers": 40,
                         "num_attention_heads": 32, "vocab_size": 128256},
         "vision_config": {"model_type": "mllama_vision_model", "image_size": 560, "patch_size": 14}},
        {"size": {"height": 560, "width": 560}, "max_image_tiles": 4}, {}, {(1000, 1000): 1},
    ),
}  # fmt: skip
"""What matters of configurations as they are published."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read(tmp_path: Path, name: str) -> None:
    config, image, processor, wanted = PUBLISHED[name]
    images = image_tokens(config, image, processor, lambda id: f"<{id}>")
    assert {size: images.text(*size).count(images.filler) for size in wanted} == wanted
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    facts = read_model_facts(tmp_path)
    assert facts.hidden_size > 0 and facts.model_type.startswith(config["model_type"][:6])
    assert not facts.parameters.exact


def test_a_model_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    from support.tiny_models import build_tiny_model

    build_tiny_model(tmp_path / "llama")
    with pytest.raises(WhetError, match="model_type='llama'"):
        load_seeing(tmp_path / "llama", Precision())
    (tmp_path / "llama" / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(WhetError, match="model_type='llama'"):
        load_seeing(tmp_path / "llama", Precision())
    bare = build_seeing(tmp_path / "bare", "llava")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(WhetError, match=r"has no preprocessor_config\.json"):
        load_seeing(bare, Precision())


@pytest.mark.parametrize("name", SEEING)
def test_switches_choose_layers_by_name(folder: Path, name: str) -> None:
    layers = linear_layers(load_seeing(folder / name, Precision()).handle.model)
    everything = set(chosen_layers(layers, VisionSection()))
    assert everything == {one for one in layers if not one.endswith("lm_head")}
    assert {part_of(one) for one in everything} == {"vision", "language"}
    for switch, kept in zip(SWITCHES, ("vision", "language", "attention", "mlp"), strict=True):
        off = set(chosen_layers(layers, VisionSection.model_validate({switch: False})))
        told = part_of if switch in SWITCHES[:2] else kind_of
        assert {told(one) for one in everything - off} == {kept}
        assert kept not in {told(one) for one in off}
    tower = [one for one in everything if part_of(one) == "vision"]
    assert all(("visual" in one) or ("vision" in one) or ("multi_modal" in one) for one in tower)
    assert not any("language_model" in one for one in tower)
    named = chosen_layers(layers, VisionSection(finetune_vision_layers=False), ["q_proj"])
    assert named and all(one.endswith("q_proj") and "language_model" in one for one in named)
    with pytest.raises(WhetError, match="No linear layer is left"):
        chosen_layers(layers, VisionSection(), ["no_such"])


def test_llavas_unread_layer_gets_no_adapter(folder: Path) -> None:
    """Features are those of the layer before the last."""
    layers = linear_layers(load_seeing(folder / "llava", Precision()).handle.model)
    assert any("encoder.layers.0." in one for one in layers)
    assert not any("encoder.layers.1." in one for one in layers)


def test_sizes_of_images() -> None:
    assert fitted_size(500, 400, 300, 1000) == (500, 400)
    assert fitted_size(4000, 2000, 300, 1000) == (1000, 500)
    assert fitted_size(100, 200, 300, 1000) == (300, 600)
    assert fitted_size(10, 1000, 300, 1000) == (10, 1000)
    assert fitted_size(1, 4000, 300, 1000) == (1, 1000)


def test_text_sees_the_images_before_it() -> None:
    assert seen_by([2], 9) == [(2, 9)]
    assert seen_by([2, 6], 9) == [(2, 6), (6, 9)]
    assert seen_by([1, 2, 3, 6], 9) == [(1, 6), (2, 6), (3, 6), (6, 9)]


PLACES = [
    ({"messages": [{"role": "user", "content": "<image>\nwhat"}, {"role": "assistant", "content": "a"}],
      "images": ["x"]}, ["x"]),
    ({"messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "a"}],
      "images": ["x", "y"]}, ["x", "y"]),
    ({"image": "x", "prompt": "what", "completion": "a"}, ["x"]),
    ({"conversations": [{"from": "human", "value": "<image> and <image>"}, {"from": "gpt", "value": "a"}],
      "images": ["x", "y"]}, ["x", "y"]),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}},
                                                {"type": "text", "text": "what"}]},
                   {"role": "assistant", "content": "a"}]}, [{"url": "x"}]),
    ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]},
                   {"role": "assistant", "content": "a"}], "image": "x"}, ["x"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "wanted"), PLACES)
def test_images_are_found_however_a_row_writes_them(row: dict[str, Any], wanted: list[Any]) -> None:
    messages, images = conversation_of(row, system=None)
    assert images == wanted
    places = [part for one in messages if isinstance(one["content"], list) for part in one["content"]
              if part["type"] == "image"]  # fmt: skip
    assert len(places) == len(images) and [one["role"] for one in messages] == ["user", "assistant"]


WRONG = [
    ({"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a"}]}, "places"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "image"}]}],
      "images": ["x"]}, "only what a user says"),
    ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}, "'video'"),
    ({"messages": []}, "empty"),
    ({"text": "a"}, "neither messages nor a question"),
    ({"messages": [{"role": "assistant", "content": "a"}], "images": ["x"]}, "nothing that a user says"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}], "images": ["y"]},
     "which"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), WRONG)
def test_rows_that_show_images_where_none_can_be(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        conversation_of(row)
