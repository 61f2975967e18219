"""Every family the converter knows, one descriptor each. Where several claim a model_type, the first that
applies to the config is taken."""

from __future__ import annotations

from ..descriptor import Architecture
from .llama import LLAMA, MISTRAL
from .qwen import QWEN2, QWEN3

ARCHITECTURES: tuple[Architecture, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3)
