"""`VisionDataCollator`: rows of a script, with images in them, to batches with labels.

trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=rows,
                     data_collator=VisionDataCollator(model, tokenizer))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ..data.image_rows import conversation_of
from ..data.image_store import cut_row
from ..data.images import resized
from ..data.messages import Message
from ..data.rows import RowError
from ..errors import WhetError
from .notes import say
from .seeing import PictureCollator
from .seeing_processor import LARGEST, SeeingProcessor, image_of
from .spellings import refuse_unknown
from .state import state_of

WITHOUT_EFFECT = {
    "ignore_index": "labels without loss are -100, as torch has it",
    "force_match": "what the assistant wrote is known by the template, not by markers",
    "num_proc": "rows are prepared when it is their turn",
    "completion_only_loss": "train_on_responses_only says it",
    "pad_to_multiple_of": "rows are padded to multiples of eight",
    "snap_to_patch_size": "the image processor brings sides to whole patches",
    "resize_dimension": "the longer side counts",
}
IMAGE_MIN, IMAGE_MAX = 300, 1000


class VisionDataCollator(PictureCollator):
    """Rows of messages (or of a question and its answer) with images, in any way of
    :mod:`whet.engine.data.image_rows`, to tensors.

    Args:
        model: of :class:`.fast_vision_model.FastVisionModel`.
        processor: the second thing that its `from_pretrained` returned.
        max_seq_length: tokens of the longest row; texts behind are cut, images never. By default the
            model's.
        formatting_func: a row to a row, or to a list of messages.
        resize: None keeps sides within 300 to 1000 pixels; "max" leaves images as they are, a number is the
            longer side's most pixels, "min" the number that the model's own configuration states, and
            (width, height) a box that images fit into.
        train_on_responses_only: label what the assistant writes, and nothing else. False labels all texts.
        instruction_part, response_part: markers that scripts carry; the template knows without them. One
            that no row can contain is an error.
        image_min, image_max: other sides than 300 and 1000.
        **given: older options without effect, each said aloud.

    Raises:
        WhetError: `python_api.processor` for the processor of another library,
            `python_api.unknown_argument`, `data.markers_match_nothing`; from a call `data.row`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_seq_length: int | None = None,
        formatting_func: Callable[[Any], Any] | None = None,
        resize: str | int | Sequence[int] | None = None,
        train_on_responses_only: bool = False,
        instruction_part: str | None = None,
        response_part: str | None = None,
        *,
        image_min: int = IMAGE_MIN,
        image_max: int = IMAGE_MAX,
        **given: Any,
    ) -> None:
        refuse_unknown("VisionDataCollator", given, WITHOUT_EFFECT, ("resize", "max_seq_length"))
        for name in given:
            say(f"{name}= has no effect: {WITHOUT_EFFECT[name]}.")
        if not isinstance(processor, SeeingProcessor):
            raise WhetError(
                "python_api.processor",
                f"VisionDataCollator got a {type(processor).__name__} as its processor.",
                "Pass what FastVisionModel.from_pretrained returned beside the model.",
            )
        state = state_of(model)
        self.processor, self.formatting_func = processor, formatting_func
        self.max_seq_length = max_seq_length or (state.max_seq_length if state else None) or LARGEST
        self.responses_only = False
        self.resize = _resizing(resize, image_min, image_max, model)
        self._cut_said = False
        if train_on_responses_only:
            self.supervise_responses(instruction_part, response_part)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """A batch: input_ids, labels, attention_mask, and the images as the model takes them."""
        return self.processor.collated([self._prepared(row) for row in rows])

    def supervise_responses(self, *markers: str | None) -> None:
        """Label what the assistant writes, and nothing else, from now on.

        Args:
            markers: texts that open turns, as scripts carry them; see the class.

        Raises:
            WhetError: ``data.markers_match_nothing``.
        """
        for marker in markers:
            if marker is not None:
                self._check_marker(marker)
        self.responses_only = True

    def _prepared(self, row: Any) -> tuple[list[int], list[int], list[Image.Image]]:
        if self.formatting_func is not None:
            row = self.formatting_func(row)
        value = row if isinstance(row, Mapping) else {"messages": row}
        try:
            messages, named = conversation_of(_without_nulls(value))
            images = [self.resize(image_of(one)) for one in named]
            sizes = [image.size for image in images]
            whole = self.processor.encoder.encode(messages, sizes, everything=not self.responses_only)
            flags, kept = cut_row(whole, self.max_seq_length)
        except RowError as error:
            raise WhetError(
                "data.row",
                f"A row cannot be used: {error.reason}.",
                "Repair it or leave it out; longer rows need a larger max_seq_length, or smaller images.",
            ) from error
        if flags and not self._cut_said:
            self._cut_said = True
            say(f"Rows are cut at {self.max_seq_length} tokens; the first has {len(whole.input_ids)}.")
        return kept.input_ids, kept.labels, images

    def _check_marker(self, marker: str) -> None:
        probe: list[Message] = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
        ]
        renderer = self.processor.encoder.renderer
        try:
            text = renderer.render(probe)
        except WhetError:  # a template without system messages
            text = renderer.render(probe[1:])
        if marker.strip() not in text:
            raise WhetError(
                "data.markers_match_nothing",
                f"{marker!r} is in no conversation that this model's template writes.",
                "Leave instruction_part and response_part out: the template tells what the assistant wrote. "
                f"It writes {text!r}.",
            )


UnslothVisionDataCollator = VisionDataCollator


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """A data set of parts fills the keys that a part does not have with None."""

    def cleaned(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: held for key, held in part.items() if held is not None}
        return part

    kept = {key: held for key, held in value.items() if held is not None}
    for field, turns in kept.items():
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
            kept[field] = [
                {**turn, "content": [cleaned(part) for part in turn["content"]]}
                if isinstance(turn.get("content"), list)
                else turn
                for turn in turns
            ]
    return kept


def _resizing(
    resize: str | int | Sequence[int] | None, least: int, most: int, model: Any
) -> Callable[[Image.Image], Image.Image]:
    """What is done to each image. Raises WhetError ``python_api.resize``."""
    if resize is None:
        return lambda image: resized(image, least, most)
    if resize == "max":
        return lambda image: image
    if resize == "min":
        stated = getattr(model.config.vision_config, "image_size", None)
        return lambda image: resized(image, 1, int(stated or most))
    if isinstance(resize, int):
        return lambda image: resized(image, 1, resize)
    if not isinstance(resize, str) and len(resize) == 2:
        width, height = map(int, resize)

        def boxed(image: Image.Image) -> Image.Image:
            scale = min(width / image.width, height / image.height, 1.0)
            return resized(image, 1, max(1, round(scale * max(image.size))))

        return boxed
    raise WhetError(
        "python_api.resize",
        f"resize={resize!r} is no choice.",
        'Use None, "min", "max", a number of pixels, or (width, height).',
    )
