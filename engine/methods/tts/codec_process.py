"""The far end of :class:`whet.engine.data.codecs.Codec`: sound in, codes out, a JSON line each.

Its first line says how many samples a second the codec hears. It computes on the CPU: a plan takes no GPU.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, MimiModel

from ...data.audio import samples_of
from ...models.own_files import LOCAL, WEIGHTS

Encode = Callable[[torch.Tensor], list[list[int]]]
INSIDE = "codec_model."


def main() -> None:
    """Answer each line of standard input."""
    kind, place = sys.argv[1:]
    rate, encode = {"mimi": mimi, "snac": snac}[kind](place)
    _say({"rate": rate})
    for line in sys.stdin:
        samples = samples_of(base64.b64decode(json.loads(line)["samples"]))
        with torch.no_grad():
            _say({"codes": encode(torch.from_numpy(samples)[None, None])})


def mimi(place: str) -> tuple[int, Encode]:
    """Mimi from a folder of its own, or from inside a CSM's weights."""
    folder = Path(place)
    config: Any = AutoConfig.from_pretrained(folder, **LOCAL)
    options: dict[str, Any] = {"output_loading_info": True, "dtype": torch.float32, **WEIGHTS}
    loaded: Any
    if config.model_type == "csm":
        inside = weights_inside(folder)
        loaded = MimiModel.from_pretrained(None, config=config.codec_config, state_dict=inside, **options)
    else:
        loaded = MimiModel.from_pretrained(folder, **options)
    model, seen = loaded
    if seen["missing_keys"]:
        raise SystemExit(f"{folder} lacks {len(seen['missing_keys'])} weights of the Mimi codec")
    model.eval()
    return int(model.config.sampling_rate), lambda sound: model.encode(sound).audio_codes[0].tolist()


def snac(place: str) -> tuple[int, Encode]:
    """SNAC from a folder or the hub; torch reads nothing but weights from its file."""
    from snac import SNAC

    model: Any = SNAC.from_pretrained(place)
    return int(model.sampling_rate), lambda sound: [one[0].tolist() for one in model.encode(sound)]


def weights_inside(folder: Path) -> dict[str, torch.Tensor]:
    """The codec's part of a larger model's files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(INSIDE)]  # noqa: SIM118
            found |= {name.removeprefix(INSIDE): tensors.get_tensor(name) for name in names}
    return found


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
