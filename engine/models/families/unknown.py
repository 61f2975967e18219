"""Any other decoder: plain transformers, its facts read from the weights instead of a known layout."""

from .descriptor import Experimental, Family

_NOTE = "not a family whet knows: plain transformers, memory estimated from the weight files"

FAMILY = Family(
    name="unknown",
    model_types=(),
    capabilities={
        name: Experimental(_NOTE) for name in ("sft", "lora", "dora", "full", "nf4", "int8", "packing")
    },
)
