"""What prepares texts and images for a vision-language model, with the calls that scripts make on it.

It is whet's own, so that it works where transformers' processors want torchvision; texts, tokens and pixels
are the same. The files that it saves are the model's own, for transformers' `AutoProcessor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from ..data.image_rows import conversation_of
from ..data.image_text import ConversationEncoder
from ..data.images import find_picture, plain, read_picture
from ..data.rows import RowError
from ..errors import WhetError
from ..methods.vision.inputs import ImageInputs, padded
from ..methods.vision.loading import Seeing, copy_processor
from .seeing import PictureProcessor

LARGEST = 1 << 30


class SeeingProcessor(PictureProcessor):
    """Tokenizer and image processor of one model. Every attribute of the tokenizer is one of this too.

    Args:
        tokenizer: transformers' own, with the chat template in force.
        encoder: renders and tokenises conversations.
        inputs: makes pixels.
        folder: of the model, whose processor files are saved again.
    """

    def __init__(
        self, tokenizer: Any, encoder: ConversationEncoder, inputs: ImageInputs, folder: Path
    ) -> None:
        self.tokenizer, self.encoder, self.inputs, self.folder = tokenizer, encoder, inputs, folder
        self.image_processor = inputs.processor

    @classmethod
    def of(cls, seeing: Seeing) -> SeeingProcessor:
        """Of a loaded model."""
        return cls(seeing.handle.tokenizer, seeing.encoder, seeing.inputs, seeing.handle.path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "tokenizer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        **variables: Any,
    ) -> Any:
        """The conversation as text; with ``tokenize`` as tensors, its images among them (without
        ``return_dict`` its ids alone).

        Raises:
            WhetError: `data.row` for turns or images that cannot be used, `template.*`.
        """
        try:
            messages, values = conversation_of({"messages": list(conversation)})
        except RowError as error:
            # Places without their images are what a text needs; the images come with the call.
            if tokenize:
                raise _unusable(error) from error
            text = self.encoder.renderer.render(conversation, add_generation_prompt, **variables)
            return text
        text = self.encoder.renderer.render(messages, add_generation_prompt, **variables)
        if not tokenize:
            return text
        batch = self(images=values or None, text=text, return_tensors=return_tensors)
        return batch if return_dict else batch["input_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        add_special_tokens: bool = False,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        **given: Any,
    ) -> BatchFeature:
        """Texts that hold the template's places for images, with the images, as tensors for `generate`.

        Args:
            images: one, a list for one text, or a list of lists for several texts.
            text: rendered by :meth:`apply_chat_template`. Special tokens are those that it wrote; the
                tokenizer's own beginning is added where it is missing.
            add_special_tokens: accepted for scripts; see ``text``.
            return_tensors: "pt".
            padding: several texts are padded on the left, as answering needs it.
            **given: tokenizer options that scripts carry; they change nothing.

        Raises:
            WhetError: `data.row` where places and images do not fit each other.
        """
        if isinstance(images, str | list) and text is None:
            images, text = None, images
        texts = [text] if isinstance(text, str) else list(text or [])
        given_rows = _rows(images, len(texts))
        if not texts or not all(isinstance(one, str) for one in texts) or len(given_rows) != len(texts):
            raise _unusable(RowError(f"there are images for {len(given_rows)} texts, and {len(texts)} texts"))
        shown = [[image_of(one) for one in row] for row in given_rows]
        try:
            rows = [
                self.encoder.tokenise(one, [image.size for image in row])
                for one, row in zip(texts, shown, strict=True)
            ]
        except RowError as error:
            raise _unusable(error) from error
        longest, pad = max(map(len, rows)), self._pad_id()
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in rows])
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT} | self.inputs(shown, ids_BT)
        return BatchFeature(batch)

    def decode(self, *args: Any, **options: Any) -> Any:
        """The tokenizer's."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> Any:
        """The tokenizer's."""
        return self.tokenizer.batch_decode(*args, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the tokenizer and the model's own processor files."""
        folder = Path(save_directory)
        self.tokenizer.save_pretrained(str(folder))
        copy_processor(self.folder, folder)

    def collated(self, rows: Sequence[tuple[list[int], list[int], list[Image.Image]]]) -> dict[str, Any]:
        """Ids, labels and images of rows as a batch for training, padded on the right."""
        batch = padded([ids for ids, _, _ in rows], [labels for _, labels, _ in rows], self._pad_id())
        return batch | self.inputs([images for _, _, images in rows], batch["input_ids"])

    def _pad_id(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(token) for token in known if token is not None), 0)


def image_of(value: Any) -> Image.Image:
    """An image of a row, upright and in RGB. Raises WhetError ``data.row``."""
    if isinstance(value, Image.Image):
        return plain(value)
    try:
        return read_picture(find_picture(value, None), 1, LARGEST)
    except RowError as error:
        raise _unusable(error) from error


def _rows(images: Any, texts: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(texts)]
    if not isinstance(images, list | tuple):
        return [[images]]
    if images and isinstance(images[0], list | tuple):
        return [list(row) for row in images]
    return [list(images)] if texts == 1 else [[image] for image in images]


def _unusable(error: RowError) -> WhetError:
    return WhetError("data.row", f"A row cannot be used: {error.reason}.", "Repair or leave out such rows.")
