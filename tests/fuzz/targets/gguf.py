"""GGUF files, importance matrices and Modelfiles that others made."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from fuzz import mutate
from fuzz.case import Case, Room, Target

from whet.engine import api
from whet.engine.errors import WhetError

MODELFILE = """FROM ./model.gguf
TEMPLATE \"\"\"{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}{{ end }}{{ if .System }}x{{ end }}\"\"\"
PARAMETER stop "<|im_end|>"
SYSTEM be brief
"""


VALUES = {"model": {"name": "demo"}, "data": {"train": "demo", "max_rows": 4}}


@cache
def _small() -> bytes:
    """A whole file: every kind of value, three tensors."""
    import numpy as np
    from gguf import GGUFWriter

    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_file_type(7)
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["rows"])
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "c"])
        writer.add_token_types([1, 1, 3])
        writer.add_chat_template("{{ messages[0].content }}")
        for name in ("token_embd.weight", "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"):
            writer.add_tensor(name, np.ones((3, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def make(rng: Random) -> Case:
    made = mutate.data(rng, _small(), most=rng.choice((1, 2, 4)))
    modelfile = mutate.text(rng, MODELFILE) if rng.random() < 0.7 else MODELFILE
    return Case({"model.gguf": made, "Modelfile": modelfile.encode("utf-8", "surrogatepass")})


def run(case: Case, room: Room) -> None:
    """Its header, its types, as an importance matrix, and its template beside the demo's rows."""
    from whet.engine.export.gguf.importance import Importance
    from whet.engine.export.gguf.quantize import tensor_types
    from whet.engine.export.smoke import type_of
    from whet.engine.export.smoke_metadata import read_metadata

    path = room.files / "model.gguf"
    looks: tuple[Any, ...] = (
        lambda: read_metadata(path),
        lambda: type_of(path),
        lambda: tensor_types(path),
        lambda: Importance.load(path),
        lambda: api.template_view(VALUES, modelfile=room.files / "Modelfile"),
    )
    errors = []
    for look in looks:
        try:
            look()
        except WhetError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def run_native(case: Case, room: Room) -> None:
    """llama.cpp reads it: whatever becomes of that process is a clear error here."""
    api.template_view(VALUES, gguf=room.files / "model.gguf")


TARGETS = (
    Target("gguf", make, run, share=4, in_ci=12),
    Target("gguf-in-llama.cpp", make, run_native, share=1),
)
