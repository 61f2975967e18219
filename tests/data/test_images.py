"""Pictures of rows: what can be read is, and what cannot is a bad row with its place; nothing is fetched."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from support.tiny_vision import build_seeing, colour_rows

from whet.engine.data.image_store import ImageBuilder
from whet.engine.data.images import MAX_BYTES, Picture, find_picture, look_at, plain, read_picture
from whet.engine.data.masking import IGNORE
from whet.engine.data.rows import RowError
from whet.engine.plan import make_plan
from whet.engine.recipe import Recipe


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def red(size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (200, 10, 20))


def test_a_picture_comes_as_path_base64_bytes_or_image(tmp_path: Path) -> None:
    data = encoded(red())
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    values = ["a.png", str(tmp_path / "a.png"), text, f"data:image/png;base64,{text}", data,
              {"bytes": data, "path": None}, {"path": "a.png"}, red()]  # fmt: skip
    for value in values:
        picture = find_picture(value, tmp_path)
        assert look_at(picture) == (40, 30)
        assert read_picture(picture, 60, 100).size == (80, 60)
        assert read_picture(picture, 1, 20).size == (20, 15)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(kind: str) -> None:
    assert look_at(find_picture(encoded(red((90, 60)), kind), None)) == (90, 60)


def test_turned_and_transparent_pictures_are_shown_as_people_see_them() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(red((90, 60)), "JPEG", exif=turned)
    assert look_at(find_picture(data, None)) == (60, 90) == read_picture(find_picture(data, None), 1, 99).size
    turned[0x0112] = 9  # no turn that EXIF knows
    data = encoded(red((90, 60)), "JPEG", exif=turned)
    assert look_at(find_picture(data, None)) == (90, 60) == read_picture(find_picture(data, None), 1, 99).size
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert plain(clear).getpixel((0, 0)) == (255, 255, 255)
    assert plain(Image.new("L", (4, 4), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_rows_of_the_hub_name_no_files_here(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(red()))
    for value in ("a.png", str(tmp_path / "a.png"), {"bytes": None, "path": "a.png"}):
        with pytest.raises(RowError, match="must hold their images"):
            find_picture(value, tmp_path, files=False)
    held = find_picture({"bytes": encoded(red()), "path": "a.png"}, tmp_path, files=False)
    assert held.path is None and look_at(held) == (40, 30)


def bomb() -> bytes:
    """A file of some hundred bytes that says it has 400 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


UNREADABLE = [
    ("https://example.org/a.png", "fetches nothing"),
    ("missing.png", "there is no image 'missing.png'"),
    ("", "expected a path"),
    ("../outside.png", "outside of the data file's folder"),
    ("linked.png", "outside of the data file's folder"),
    (b"no picture at all", "cannot be identified|cannot be read"),
    (encoded(Image.effect_noise((200, 200), 50), "JPEG")[:4000], "cannot be read: image file is truncated"),
    (encoded(Image.effect_noise((64, 64), 50))[:1500], "cannot be read"),
    ("data:image/svg+xml,<svg/>", "expected base64"),
    ("!" * 100 + ".png", "there is no image"),
    ("a long caption " * 40, "there is no image"),
    ("~nobody-of-that-name/a.png", "expected a path"),
    ("\ud800.png", "expected a path"),
    (7, "is int, expected a path"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
]


@pytest.mark.parametrize(("value", "reason"), UNREADABLE)
def test_what_cannot_be_read_says_why(tmp_path: Path, value: Any, reason: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(encoded(red()))
    (folder / "linked.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(RowError, match=reason):
        look_at(find_picture(value, folder))


def test_pictures_that_unpack_to_too_much_are_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"20,000 x 20,000 pixels|exceeds limit"):
        look_at(find_picture(bomb(), None))
    large = tmp_path / "large.png"
    with open(large, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RowError, match="the limit is"):
        find_picture(str(large), None)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(red()))
    picture = find_picture("a.png", tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(red((41, 30))))
    with pytest.raises(RowError, match="has changed"):
        read_picture(picture, 1, 100)
    gone = Picture(str(tmp_path / "b.png"), None, "")
    with pytest.raises(RowError, match=r"b\.png cannot be read: No such file"):
        read_picture(gone, 1, 100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_seeing(tmp_path_factory.mktemp("model") / "pixtral", "pixtral")


def recipe(base: Path, rows: Path, **sections: Any) -> Recipe:
    whole: dict[str, Any] = {
        "model": {"name": str(base), "max_length": 128},
        "data": {"train": str(rows)},
        "method": {"kind": "vision", "image_min": 8, "image_max": 64},
    }
    for name, values in sections.items():
        whole[name] = whole.get(name, {}) | values
    return Recipe.model_validate(whole)


def said(value: Any, text: str = "Which one?") -> dict[str, Any]:
    user = [{"type": "image", "image": value}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "red"}]}


def test_bad_rows_are_named_and_the_others_kept(model: Path, tmp_path: Path) -> None:
    rows = colour_rows(tmp_path / "rows")
    broken = base64.b64encode(encoded(Image.effect_noise((99, 99), 50), "JPEG")[:2000]).decode()
    bad = [
        said("gone.png"),
        said(broken),
        said("0.png", "an [IMG] in a text"),
        {"messages": [{"role": "user", "content": "<image> and <image>"},
                      {"role": "assistant", "content": "a"}], "images": ["0.png"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "0.png"}]}]},
    ]  # fmt: skip
    with open(rows, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in bad)
    report = make_plan(recipe(model, rows)).data.report
    assert report.train.rows == 16 and report.bad_rows == len(bad)
    assert [one.line for one in report.bad] == [17, 18, 19, 20, 21]
    reasons = [
        "no image 'gone.png'",
        "truncated",
        "[IMG], which stands",
        "places for 2 images",
        "says nothing",
    ]
    for one, reason in zip(report.bad, reasons, strict=True):
        assert reason in one.reason and one.file == str(rows)


def test_no_image_is_ever_cut(model: Path, tmp_path: Path) -> None:
    """A row of 128 tokens has room for a small picture; a large one makes it a bad row, which says so."""
    folder = tmp_path / "rows"
    rows = colour_rows(folder, 4)
    red((640, 640)).save(folder / "large.png")
    long = said("0.png")
    long["messages"][1]["content"] = "day " * 200
    with open(rows, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in [said("large.png"), said("large.png"), long])
    report = make_plan(recipe(model, rows, model={"max_length": 64})).data.report
    assert report.bad_rows == 2 and "model.max_length is 64" not in report.bad[0].reason
    assert "raise model.max_length, or lower method.image_max" in report.bad[0].reason
    assert report.train.truncated_rows == 1 and report.train.rows == 5
    whole = make_plan(recipe(model, rows)).data.report
    assert whole.bad_rows == 0 and whole.images is not None and whole.images.images == 7
    large = 8 * 8  # patches of 8 pixels, 64 to a side at most
    assert whole.images.most_patches_in_a_row == large
    smaller = make_plan(recipe(model, rows, model={"max_length": 64}, method={"image_max": 32})).data.report
    assert smaller.bad_rows == 0


def test_where_answers_stand_is_counted(model: Path, tmp_path: Path) -> None:
    plan = make_plan(recipe(model, colour_rows(tmp_path / "rows", 4)))
    (file,) = (tmp_path / "home").rglob("train.arrow")
    with pa.memory_map(str(file)) as source:
        rows = pa.ipc.open_stream(source).read_all()["labels"].to_pylist()
    learnt = [[at for at, label in enumerate(labels) if label != IGNORE] for labels in rows]
    images = plan.data.report.images
    assert images is not None and images.fewest_before_answers == min(places[0] for places in learnt) > 0
    assert images.most_supervised_in_a_row == max(map(len, learnt)) > 0


def test_other_pictures_under_the_same_names_are_other_data(model: Path, tmp_path: Path) -> None:
    rows = colour_rows(tmp_path / "rows", 4)
    first, again = (make_plan(recipe(model, rows)) for _ in range(2))
    assert first.id == again.id and first.data.digest == again.data.digest
    red((50, 20)).save(tmp_path / "rows" / "0.png")
    changed = make_plan(recipe(model, rows))
    assert changed.id != first.id and changed.data.digest != first.data.digest
    assert changed.data.report.train.tokens != first.data.report.train.tokens
    sized = make_plan(recipe(model, rows, method={"image_max": 16}))
    assert sized.data.report.train.tokens < first.data.report.train.tokens
    shutil.rmtree(tmp_path / "rows")
    assert ImageBuilder.content_digest(changed.data.dir) is None


def test_rows_that_bring_their_images_need_no_files(model: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [encoded(red((8 * n, 16))) for n in range(1, 5)]
    rows = [{"image": {"bytes": one, "path": None}, "question": "a", "answer": "red"} for one in pictures]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    report = make_plan(recipe(model, tmp_path / "rows.parquet")).data.report
    assert report.train.rows == 4 and report.images is not None and report.images.images == 4
    assert "4 of them with images" in report.format.reason
