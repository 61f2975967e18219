"""A vision script runs with its import lines changed, and its collator does what its options say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from support.tiny_vision import build_seeing
from transformers import AutoModelForImageTextToText

from whet.engine import (
    FastVisionModel,
    SFTConfig,
    SFTTrainer,
    VisionDataCollator,
    train_on_responses_only,
)
from whet.engine.errors import WhetError
from whet.engine.python_api.notes import WhetNote
from whet.engine.python_api.vision_trainer import VisionSFTTrainer

FLOW = Path(__file__).with_name("vision_flow.txt")
IMPORTS = {
    "from unsloth import FastVisionModel, is_bf16_supported":
        "from whet.engine import FastVisionModel, is_bf16_supported",
    "from unsloth.trainer import": "from whet.engine.trainer import",
    "from trl import SFTTrainer, SFTConfig": "from whet.engine import SFTTrainer, SFTConfig",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::whet.engine.python_api.notes.WhetNote")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_seeing(tmp_path_factory.mktemp("seeing") / "qwen", "qwen2_5_vl")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return FastVisionModel.from_pretrained(str(folder), load_in_16bit=True)


def test_a_script_runs_with_its_imports_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = FLOW.read_text(encoding="utf-8")
    for theirs, ours in IMPORTS.items():
        assert theirs in script
        script = script.replace(theirs, ours)
    ran: dict[str, Any] = {}
    exec(compile(script.replace("MODEL", str(folder)), "script.py", "exec"), ran)
    assert isinstance(ran["trainer"], VisionSFTTrainer)
    losses = [entry["loss"] for entry in ran["trainer"].state.log_history if "loss" in entry]
    assert len(losses) == 16 and losses[-1] < losses[0] / 2
    assert ran["answers"] == ["red", "blue"]
    base = AutoModelForImageTextToText.from_pretrained(folder)
    PeftModel.from_pretrained(base, "lora")
    merged = AutoModelForImageTextToText.from_pretrained("merged", dtype=torch.float32).eval()
    inputs = ran["inputs"]
    own, other = ran["model"].eval()(**inputs).logits[0, -1], merged(**inputs).logits[0, -1]
    assert int(own.argmax()) == int(other.argmax())
    again, processor = FastVisionModel.from_pretrained("lora", load_in_16bit=True)
    assert isinstance(again, PeftModel) and processor.chat_template == ran["tokenizer"].chat_template
    for name in ("lora", "merged"):
        assert os.path.isfile(f"{name}/preprocessor_config.json")


def row(*images: Image.Image) -> dict[str, Any]:
    shown = [{"type": "image", "image": image} for image in images]
    user = [*shown, {"type": "text", "text": "the river"}]
    return {
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": "the house"}]},
        ]
    }


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (9, 99, 199))


def tokens(batch: dict[str, Any]) -> list[int]:
    """Merged patches of each image of a batch."""
    return [int(grid.prod()) // 4 for grid in batch["image_grid_thw"]]


def test_labels_are_all_texts_or_answers_alone_and_never_images(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    rows = [row(picture(56, 56)), row(picture(28, 28), picture(28, 56)), {"messages": row()["messages"]}]
    everything = VisionDataCollator(model, processor)(rows)
    answers = VisionDataCollator(model, processor, train_on_responses_only=True)(rows)
    image = processor.encoder.images.filler_id
    for batch in (everything, answers):
        assert not (batch["labels"] == image).any() and (batch["input_ids"] == image).any()
        assert len(tokens(batch)) == 3
    trainer = SFTTrainer(model, SFTConfig("o"), train_dataset=rows, tokenizer=processor)
    later = train_on_responses_only(trainer, response_part="<|assistant|>\n").data_collator(rows)
    assert torch.equal(later["labels"], answers["labels"])
    learnt = [processor.decode(one[one != -100]) for one in answers["labels"]]
    assert learnt == ["the house<|turn_end|>"] * 3
    assert all("the river" in processor.decode(one[one != -100]) for one in everything["labels"])


@pytest.mark.parametrize(
    ("resize", "side"),
    [("max", 112), (56, 56), ((56, 200), 56), ({"image_min": 28, "image_max": 84}, 84)],
)
def test_images_are_resized_as_asked(loaded: tuple[Any, Any], resize: Any, side: int) -> None:
    """112 pixels are 4 merged patches of 28; the tiny model takes no more than 16."""
    given = resize if isinstance(resize, dict) else {"resize": resize}
    batch = VisionDataCollator(*loaded, **given)([row(picture(112, 112))])
    assert tokens(batch) == [(side // 28) ** 2]
    usual = VisionDataCollator(*loaded)
    assert usual.resize(picture(112, 112)).size == (300, 300)
    assert usual.resize(picture(4000, 2000)).size == (1000, 500)


def test_options_that_mean_nothing_or_something_wrong_are_said(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with pytest.warns(WhetNote, match="num_proc="):
        VisionDataCollator(model, processor, num_proc=2)
    for given, code in (
        ({"resizes": 3}, "python_api.unknown_argument"),
        ({"resize": "huge"}, "python_api.resize"),
        ({"train_on_responses_only": True, "response_part": "### Answer:"}, "data.markers_match_nothing"),
    ):
        with pytest.raises(WhetError) as raised:
            VisionDataCollator(model, processor, **given)
        assert raised.value.code == code
    with pytest.raises(WhetError, match="Pass what FastVisionModel"):
        VisionDataCollator(model, processor.tokenizer)
    short = VisionDataCollator(model, processor, max_seq_length=8, resize="max")
    with pytest.raises(WhetError, match="its images reach to token"):
        short([row(picture(112, 112))])
    with pytest.raises(WhetError, match="is a URL"):
        short([{"image": "https://example.org/a.png", "prompt": "a", "completion": "b"}])


def test_switches_and_saving_are_refused_by_name(folder: Path) -> None:
    model, processor = FastVisionModel.from_pretrained(str(folder), load_in_16bit=True)
    for off in (("finetune_vision_layers", "finetune_language_layers"),
                ("finetune_attention_modules", "finetune_mlp_modules")):  # fmt: skip
        with pytest.raises(WhetError, match="leave nothing to train"):
            FastVisionModel.get_peft_model(model, **dict.fromkeys(off, False))
    adapted = FastVisionModel.get_peft_model(model, finetune_vision_layers=False, r=4)
    names = [name for name, param in adapted.named_parameters() if param.requires_grad]
    assert names and all(".language_model." in name for name in names)
    with pytest.raises(WhetError, match="mmproj"):
        adapted.save_pretrained_gguf("out", processor, quantization_method="q4_k_m")
    with pytest.raises(WhetError, match="mmproj"):
        adapted.save_pretrained_merged("out", processor, save_method="merged_4bit")
    with pytest.raises(WhetError, match="keeps no logits"):
        SFTTrainer(
            model=adapted, tokenizer=processor, train_dataset=[row()], args=SFTConfig("o"),
            compute_metrics=lambda found: {},
        )  # fmt: skip
    with pytest.raises(WhetError, match="packed"):
        SFTTrainer(
            model=adapted, tokenizer=processor, train_dataset=[row()], args=SFTConfig("o", packing=True)
        )


def test_several_questions_are_answered_at_once_as_one_by_one(loaded: tuple[Any, Any]) -> None:
    """Padded on the left; what the template wrote is not begun twice."""
    model, processor = FastVisionModel.for_inference(loaded[0]), loaded[1]
    chats = [row(picture(56, 56))["messages"][:1], row(picture(28, 28), picture(28, 84))["messages"][:1]]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    images = [[part["image"] for part in chat[0]["content"] if "image" in part] for chat in chats]
    both = processor(images, texts)
    for wrong, count in ((images[:1], 2), (images[0], 0)):
        with pytest.raises(WhetError, match="A row cannot be used: there are images for"):
            processor(wrong, texts[:count])
    ids = processor.apply_chat_template(chats[0], tokenize=True, return_dict=False)
    assert torch.is_tensor(ids) and ids.shape[0] == 1
    begin = processor.bos_token_id
    assert [ids.tolist().count(begin) for ids in both["input_ids"]] == [1, 1]
    with torch.no_grad():
        together = model(**both).logits[:, -1]
        for place, chat in enumerate(chats):
            alone = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
            torch.testing.assert_close(model(**alone).logits[0, -1], together[place], atol=1e-4, rtol=1e-4)
