"""Any other decoder: plain transformers, its facts read from the weights instead of a known layout."""

from .descriptor import EVERYTHING, Experimental, Family, Unsupported

FAMILY = Family(
    name="unknown",
    model_types=(),
    fast=Unsupported("not a family whet knows"),
    exact=False,
    capabilities={
        name: Experimental(
            "not a family whet knows: plain transformers, memory estimated from the weight files"
        )
        for name in EVERYTHING
    },
)
