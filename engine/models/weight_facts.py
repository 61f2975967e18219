"""What a model's files say beside one another: tokenizer, config, embedding, head, and the names of weights.

Read once for the same files and the same tokens, then remembered: the rows of all ids that the data uses are
looked at, which are some hundred megabytes of a large model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ..runs.files import private_dir
from ..settings import settings
from .facts import ModelFacts
from .families import family_of
from .image_tokens import VISION, image_token_id
from .layout import is_embedding
from .stored_tensors import FLOATS, StoredTensor, stored_tensors

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
NAMED = 10
"""Tokens and tensors that are named at most."""
EMPTY_SHARE = 1e-3
"""A row this much shorter than the usual one was never trained."""
HEADS = ("lm_head.weight", "embed_out.weight")


class Rows(BaseModel):
    """Rows of the embedding or the head, among the ids that the data uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    empty: dict[str, int] = Field(
        default_factory=dict, description=f"Token to id, of rows that are zero; the first {NAMED}."
    )
    alike: dict[str, int] = Field(
        default_factory=dict, description="The same of rows that equal another token's bit for bit."
    )
    empty_count: int = 0
    alike_count: int = 0


class WeightFacts(BaseModel):
    """What the checks of a model's files look at. JSON-serialisable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer_rows: int = Field(description="Largest id of tokenizer.json, plus one.")
    special_ids: dict[str, int] = Field(description="bos_token, eos_token, pad_token: the id of each.")
    embedding_rows: int | None = Field(None, description="None without weight files.")
    head_rows: int | None = Field(None, description="None where the files hold no head of its own.")
    ends_differ: bool = Field(False, description="Embedding and head are both stored, with other numbers.")
    embedding: Rows | None = Field(None, description="None where its rows cannot be read.")
    head: Rows | None = Field(None, description="None where there is none or it is the embedding.")
    missing: list[str] = Field(default_factory=list, description="Weights the family's layers lack.")
    misshapen: list[str] = Field(default_factory=list, description="Weights of another shape than said.")


def weight_facts(model: ModelFacts, tokens: Path) -> WeightFacts:
    """Read, or remember, the facts.

    Args:
        model: of a directory; its weights may still be missing.
        tokens: the prepared training rows (Arrow), which say what ids are used.
    """
    remembered = settings().cache / "weights" / f"{_key(model, tokens)}.json"
    if remembered.is_file():
        return WeightFacts.model_validate_json(remembered.read_bytes())
    facts = _read(model, tokens)
    private_dir(remembered.parent)
    partial = remembered.with_suffix(f".{hashlib.sha256(str(model.path).encode()).hexdigest()[:8]}.new")
    partial.write_text(facts.model_dump_json(), encoding="utf-8")
    partial.replace(remembered)
    return facts


def _key(model: ModelFacts, tokens: Path) -> str:
    names = [*model.weight_files, "config.json", "tokenizer.json", "tokenizer_config.json"]
    paths = [model.path / name for name in names]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    text = json.dumps([VERSION, stats, str(tokens)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(model: ModelFacts, tokens: Path) -> WeightFacts:
    vocabulary = _vocabulary(model.path)
    stored = stored_tensors(model.path / name for name in model.weight_files)
    embedding = next((t for n, t in stored.items() if is_embedding(n) and len(t.shape) == 2), None)
    head = next((t for n, t in stored.items() if n.endswith(HEADS) and len(t.shape) == 2), None)
    if model.codebooks is not None:
        head = None  # of codes, not of the tokens that are read
    values: dict[str, Any] = {}
    if not model.missing_weight_files:
        values["missing"], values["misshapen"] = _against_layout(model, stored)
    ids = _used_ids(tokens)
    ids = ids[ids != image_token_id(model.path)]  # nothing reads the row that images stand in for
    if embedding is not None and embedding.dtype in FLOATS and len(ids):
        names = {id: token for token, id in vocabulary.items()}
        values["embedding"] = _look(embedding, ids, names)
        if head is not None and head.dtype in FLOATS:
            values["ends_differ"] = _differ(embedding, head)
            values["head"] = None if model.tied else _look(head, ids, names)
    return WeightFacts(
        tokenizer_rows=max(vocabulary.values(), default=-1) + 1,
        special_ids=_special_ids(model.path, vocabulary),
        embedding_rows=embedding.shape[0] if embedding else None,
        head_rows=head.shape[0] if head else None,
        **values,
    )


def _vocabulary(path: Path) -> dict[str, int]:
    """Token to id; empty without tokenizer.json. Unigram models hold (token, score) in order."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return {}
    whole = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = whole["model"].get("vocab", {})
    if isinstance(vocabulary, list):
        vocabulary = {token: id for id, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in whole.get("added_tokens") or ()}}


def _special_ids(path: Path, vocabulary: dict[str, int]) -> dict[str, int]:
    file = path / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in vocabulary:
            found[name] = vocabulary[token]
    return found


def _used_ids(tokens: Path) -> np.ndarray:
    """Ids that occur in the training rows, ascending; none where rows are stored as texts."""
    import numpy as np
    import pyarrow as pa

    seen = np.zeros(0, dtype=np.int64)
    with pa.memory_map(str(tokens)) as source:
        stream = pa.ipc.open_stream(source)
        for batch in stream if "input_ids" in stream.schema.names else ():
            values = batch.column(batch.schema.get_field_index("input_ids")).flatten().to_numpy()
            counts = np.bincount(values, minlength=len(seen))
            counts[: len(seen)] += seen
            seen = np.minimum(counts, 1)
    return np.flatnonzero(seen)


def _look(table: StoredTensor, ids: np.ndarray, names: dict[int, str]) -> Rows:
    """Rows of these ids that are zero beside the usual one, or equal to another's."""
    import numpy as np

    ids = ids[ids < table.shape[0]]
    lengths, marks = [np.zeros(0)], [np.zeros(0)]
    direction = np.random.default_rng(0).standard_normal(table.shape[1]).astype(np.float32)
    for _, rows in table.rows(ids):
        lengths.append(np.linalg.norm(rows, axis=1))
        marks.append(rows @ direction)
    length, mark = np.concatenate(lengths), np.concatenate(marks)
    empty = ids[length <= EMPTY_SHARE * np.median(length)] if len(ids) else ids
    alike = _alike(table, ids[~np.isin(ids, empty)], mark[~np.isin(ids, empty)])

    def named(found: np.ndarray) -> dict[str, int]:
        return {names.get(int(id), f"<{id}>"): int(id) for id in found[:NAMED]}

    return Rows(empty=named(empty), alike=named(alike), empty_count=len(empty), alike_count=len(alike))


def _alike(table: StoredTensor, ids: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """Ids whose row equals another's: those with the same product with a random direction are compared."""
    import numpy as np

    order = np.argsort(mark, kind="stable")
    near = np.abs(np.diff(mark[order])) <= 1e-4 * np.abs(mark[order][1:])
    suspects = ids[np.unique(np.concatenate([order[1:][near], order[:-1][near]]))]
    if not len(suspects):
        return suspects
    bits = np.ascontiguousarray(table.bits()[suspects])
    whole = bits.view(np.dtype((np.void, bits.shape[1] * bits.itemsize)))[:, 0]
    _, inverse, counts = np.unique(whole, return_inverse=True, return_counts=True)
    found: np.ndarray = suspects[counts[inverse] > 1]
    return found


def _differ(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tables are not the same, by a thousand rows spread over them."""
    import numpy as np

    if one.shape != other.shape:
        return True
    numbers = np.unique(np.linspace(0, one.shape[0] - 1, 1000).astype(np.int64))
    pairs = zip(one.rows(numbers), other.rows(numbers), strict=True)
    return any(not np.array_equal(a, b) for (_, a), (_, b) in pairs)


def _against_layout(model: ModelFacts, stored: dict[str, StoredTensor]) -> tuple[list[str], list[str]]:
    """Linear layers of a known decoder that are not in the files, or in another shape.

    A kind of layer of which nothing is there has another name in these files, which the loader may know.
    """
    family = family_of(model.model_type)
    known = family.exact and model.parameters.exact  # else the count comes from these very files
    if family.encoder is not None or not known or model.quantization is not None:
        return [], []
    stored = {name: tensor for name, tensor in stored.items() if not VISION.search(name)}
    tail = {name[name.find("layers.") :] if "layers." in name else name: t for name, t in stored.items()}
    missing: list[str] = []
    misshapen: list[str] = []
    for module in model.parameters.linear:
        pattern = module.pattern[module.pattern.find("layers.") :] if "layers." in module.pattern else ""
        other = module.count != model.layers or VISION.search(module.pattern)
        if module.bare or not pattern or other:
            continue
        names = [f"{pattern.replace('*', str(number))}.weight" for number in range(model.layers)]
        there = [name for name in names if name in tail]
        missing += [name for name in names if there and name not in tail]
        wanted = (module.outputs, module.inputs)
        misshapen += [f"{name}: {tail[name].shape} stored, {wanted} by config.json"
                      for name in there if tail[name].shape != wanted]  # fmt: skip
    no_head = stored and not model.tied and not any(name.endswith(HEADS) for name in stored)
    return ["lm_head.weight", *missing] if no_head else missing, misshapen
