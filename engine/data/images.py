"""Pictures in rows: found, bounded, decoded. Pillow is imported when there is one.

What comes from a data file is not trusted: only pixel formats are tried, sizes are known before pixels are
unpacked, and a path that the file gives relative to itself stays in its folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..models.image_tokens import fitted_size
from .named_files import content_of, is_file, path_below
from .rows import RowError, preview_of

if TYPE_CHECKING:
    from PIL.Image import Image

One = TypeVar("One")
Done = TypeVar("Done")
THREADS = 8
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64 * 2**20
"""Of an image, before it is made smaller: 192 MB of colours."""
MAX_BYTES = 64 * 2**20
"""Of an image's file."""
BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")
LEAST_BASE64 = 64
"""Characters from which on a text may be an image and not a path."""
LONGEST_PATH = 4096
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and those of its values that swap the sides."""


@dataclass(frozen=True)
class Picture:
    """Where an image's bytes are: in a file, or here."""

    path: str | None
    data: bytes | None
    digest: str
    """Of the bytes."""

    def stored(self) -> dict[str, Any]:
        """As a table's cell."""
        return {"path": self.path, "data": self.data, "digest": self.digest}


def side_by_side(work: Callable[[One], Done], items: Sequence[One]) -> list[Done]:
    """``work`` done on each item by several threads, in order: Pillow unpacks beside Python. The first error
    is raised."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(len(items), THREADS)) as pool:
        return list(pool.map(work, items))


def find_picture(value: Any, folder: Path | None, *, files: bool = True) -> Picture:
    """The picture that a row names, its bytes not looked at yet.

    Args:
        value: a path, base64 (also as a ``data:`` URL), bytes, a mapping with ``bytes`` or ``path``, or an
            image of Pillow's.
        folder: what relative paths are relative to; None where a row comes from no file: they then belong to
            whoever runs the program.
        files: False for rows that others wrote elsewhere, a data set of the hub: they may not name files.

    Raises:
        RowError: none of these, a URL, a missing file, a path that leads out of its folder.
    """
    if isinstance(value, Mapping):
        held = next((value[name] for name in ("bytes", "path", "url") if value.get(name) is not None), None)
        return find_picture(held, folder, files=files)
    if isinstance(value, bytes | bytearray):
        return _held(bytes(value))
    if isinstance(value, str):
        return _from_text(value, folder, files)
    from PIL import Image

    if isinstance(value, Image.Image):
        out = io.BytesIO()
        plain(value).save(out, "PNG", compress_level=1)
        return _held(out.getvalue())
    raise RowError(f"an image is {type(value).__name__}, expected a path, base64 or bytes")


def _from_text(value: str, folder: Path | None, files: bool) -> Picture:
    if value.startswith(("http://", "https://", "ftp://", "s3://")):
        raise RowError(f"the image {preview_of(value)!r} is a URL: whet fetches nothing; download it first")
    if value.startswith("data:"):
        head, _, body = value.partition(",")
        if not head.endswith(";base64"):
            raise RowError(f"the image is a data URL of the kind {preview_of(head)!r}, expected base64")
        return _held(_decoded(body))
    if _looks_encoded(value) and (
        not files or len(value) > LONGEST_PATH or not is_file(path_below(value, folder, "image"))
    ):
        return _held(_decoded(value))
    if not files:
        raise RowError(f"names the file {preview_of(value)!r}; rows of the hub must hold their images")
    path = path_below(value, folder, "image")
    return Picture(str(path), None, digest_of(content_of(path, MAX_BYTES, "image")))


def _looks_encoded(value: str) -> bool:
    """Letters of base64 alone; a path may be made of them too."""
    return len(value) >= LEAST_BASE64 and BASE64.issuperset(value.encode("utf-8", "replace"))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(f"an image is broken base64: {error}") from error


def _held(data: bytes) -> Picture:
    if len(data) > MAX_BYTES:
        raise RowError(f"an image has {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    return Picture(None, data, digest_of(data))


def digest_of(data: bytes) -> str:
    """Sixteen hex digits of an image's bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def look_at(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels, upright; all of the image was unpacked once to see that it can be.

    Raises:
        RowError: it cannot, or it is too large.
    """
    with _opened(picture) as image:
        width, height = image.size
        # JPEG unpacks to an eighth four times faster, and reads the whole file for it.
        image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
        _unpack(image, picture)
        turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
    return (height, width) if turned else (width, height)


def read_picture(picture: Picture, least: int, most: int) -> Image:
    """The image upright, in RGB on white, its sides within ``least`` and ``most`` pixels.

    Raises:
        RowError: it cannot be read, or is not what it was when the rows were prepared.
    """
    with _opened(picture) as opened:
        _unpack(opened, picture)
        image = plain(opened)
    return resized(image, least, most)


def resized(image: Image, least: int, most: int) -> Image:
    """With sides of so many pixels, the ratio kept."""
    from PIL.Image import Resampling

    size = fitted_size(*image.size, least, most)
    return image if size == image.size else image.resize(size, Resampling.BICUBIC)


def plain(image: Image) -> Image:
    """Upright, in RGB; what is transparent is white."""
    from PIL import Image as images
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, (255, 255, 255, 255))
        image = images.alpha_composite(white, image)
    return image.convert("RGB")


def _opened(picture: Picture) -> Image:
    from PIL import Image as images

    data = picture.data
    if data is None:
        assert picture.path is not None
        try:
            data = Path(picture.path).read_bytes()
        except OSError as error:
            raise RowError(f"the image {picture.path} cannot be read: {error.strerror}") from error
        if digest_of(data) != picture.digest:
            raise RowError(f"the image {picture.path} has changed since the rows were prepared")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", images.DecompressionBombWarning)
            image = images.open(io.BytesIO(data), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, images.DecompressionBombError, struct.error) as error:
        raise _unreadable(picture, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise RowError(
            f"the image {_name(picture)} has {image.width:,} x {image.height:,} pixels; the limit is "
            f"{MAX_PIXELS:,} in all"
        )
    return image


def _unpack(image: Image, picture: Picture) -> None:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise _unreadable(picture, error) from error


def _unreadable(picture: Picture, error: Exception) -> RowError:
    said = str(error).partition("<")[0].strip().rstrip(":") or type(error).__name__
    return RowError(f"the image {_name(picture)} cannot be read: {said}")


def _name(picture: Picture) -> str:
    return picture.path or f"of {len(picture.data or b''):,} bytes"
