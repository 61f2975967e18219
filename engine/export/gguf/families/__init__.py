"""Every family the converter knows, one descriptor each. Where several claim a model_type, the first that
applies to the config is taken."""

from __future__ import annotations

from ..descriptor import Architecture
from .encoders import ENCODERS
from .gemma import GEMMA, GEMMA2, GEMMA3
from .llama import GRANITE, LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from .phi import PHI3
from .qwen import QWEN2, QWEN3, QWEN3_MOE

ARCHITECTURES: tuple[Architecture, ...] = (
    *ENCODERS,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    SMOLLM3,
    GRANITE,
)
