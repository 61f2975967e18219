"""From rows with images to what the models of each family take. Shapes: B rows, T tokens, P image tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...data.images import Picture, read_picture, side_by_side
from ...data.rows import RowError
from ...errors import WhetError
from ...models.image_tokens import ImageTokens
from ...models.vision_memory import MULTIPLE
from ..sft.collation import IGNORED, padded_length

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageInputs:
    """Pixels of a batch, as a family's model takes them beside its tokens.

    Args:
        images: how the model writes images.
        processor: transformers' image processor of the model.
        token_types: the name under which the model is told which tokens are an image's; None: it is not.
    """

    images: ImageTokens
    processor: Any
    token_types: str | None

    @classmethod
    def of(cls, images: ImageTokens, processor: Any) -> ImageInputs:
        """By the family."""
        names = {"grid": "mm_token_type_ids", "framed": "token_type_ids"}
        return cls(images, processor, names.get(images.kind))

    def __call__(self, rows: Sequence[Sequence[Image]], ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tensors for the images of a batch, each row's in order.

        Args:
            rows: images of each row, RGB.
            ids_BT: token ids, padded.
        """
        more: dict[str, torch.Tensor] = {}
        if self.token_types is not None:
            more[self.token_types] = (ids_BT == self.images.filler_id).long()
        flat = [image for row in rows for image in row]
        if not flat:
            return more
        if self.images.kind == "cross":
            return more | self._crossed(rows, ids_BT)
        options: dict[str, Any] = {}
        if self.images.kind == "rows":
            side = self.images.patch * self.images.merge
            options["patch_size"] = {"height": side, "width": side}
        if self.images.kind == "framed":
            options["do_pan_and_scan"] = False
        done = self.processor(images=flat, return_tensors="pt", **options)
        names = {"rows": ("pixel_values", "image_sizes"), "grid": ("pixel_values", "image_grid_thw")}
        for name in names.get(self.images.kind, ("pixel_values",)):
            more[name] = torch.as_tensor(done[name])
        return more

    def _crossed(self, rows: Sequence[Sequence[Image]], ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tiles, and which of them each token sees: those of the images before it, up to the next image.

        Images that follow one another at once are seen by the same text.
        """
        done = self.processor(images=[list(row) for row in rows if row], return_tensors="pt")
        counts = iter(done["num_tiles"])
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        most = done["pixel_values"].shape[1]
        mask = torch.zeros((*ids_BT.shape, most, self.images.tiles), dtype=torch.long)
        filled = {name: done[name].new_zeros((len(rows), *done[name].shape[1:])) for name in names}
        place = 0
        for index, row in enumerate(rows):
            if not row:
                # No tile of it is seen, but each has a shape: that of the smallest.
                filled["aspect_ratio_mask"][index, :, 0] = 1
                continue
            for name in names:
                filled[name][index] = done[name][place]
            place += 1
            tiles = next(counts)
            starts = (ids_BT[index] == self.images.filler_id).nonzero().flatten().tolist()
            for image, (start, end) in enumerate(seen_by(starts, ids_BT.shape[1])):
                mask[index, start:end, image, : int(tiles[image])] = 1
        return filled | {"cross_attention_mask": mask}


def seen_by(starts: Sequence[int], length: int) -> list[tuple[int, int]]:
    """For images that stand at ``starts``, the tokens that see each: up to the next image, or to the end."""
    spans: list[tuple[int, int]] = []
    for number, start in reversed(list(enumerate(starts))):
        following = starts[number + 1] if number + 1 < len(starts) else length
        end = spans[-1][1] if spans and following == start + 1 else following
        spans.append((start, end))
    return spans[::-1]


CROSSED = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")


def alike(inputs: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """A batch in parts that a model with cross-attention reads as it reads each row alone.

    There, tokens that see no image look at all that are in the batch, filler too: rows are put together with
    those that have as many images, and rows without go without. Other models' batches stay whole.
    """
    shapes_BI = inputs.get("aspect_ratio_ids")
    if shapes_BI is None:
        yield inputs
        return
    counts_B = (shapes_BI > 0).sum(1)
    for count in counts_B.unique().tolist():
        rows = (counts_B == count).nonzero().flatten()
        part = {name: value[rows] for name, value in inputs.items() if count or name not in CROSSED}
        for name in CROSSED if count else ():
            part[name] = part[name].narrow(2 if name == "cross_attention_mask" else 1, 0, count)
        yield part


@dataclass(frozen=True)
class StoredCollator:
    """Stored rows to padded tensors; each row's images are read when it is their turn.

    Args:
        inputs: of the model's images.
        pad_id: filler of short rows.
        sides: fewest and most pixels of an image's sides.
    """

    inputs: ImageInputs
    pad_id: int
    sides: tuple[int, int]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        flat = iter(side_by_side(self._image, [stored for row in rows for stored in row["images"]]))
        pictures = [[next(flat) for _ in row["images"]] for row in rows]
        batch = padded([row["input_ids"] for row in rows], [row["labels"] for row in rows], self.pad_id)
        return batch | self.inputs(pictures, batch["input_ids"])

    def _image(self, stored: Mapping[str, Any]) -> Image:
        try:
            return read_picture(Picture(stored["path"], stored["data"], stored["digest"]), *self.sides)
        except RowError as error:
            raise WhetError(
                "vision.image",
                f"{error.reason[0].upper()}{error.reason[1:]}.",
                "Put the file back as it was and resume, or plan again with `whet train RECIPE`.",
            ) from error


def padded(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """input_ids, labels and attention_mask (B, T), padded on the right."""
    length = padded_length(max(map(len, ids)), MULTIPLE)
    ids_BT = torch.full((len(ids), length), pad_id)
    labels_BT = torch.full((len(ids), length), IGNORED)
    mask_BT = torch.zeros((len(ids), length), dtype=torch.long)
    for index, (one, labelled) in enumerate(zip(ids, labels, strict=True)):
        ids_BT[index, : len(one)] = torch.as_tensor(one)
        labels_BT[index, : len(one)] = torch.as_tensor(labelled)
        mask_BT[index, : len(one)] = 1
    return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
