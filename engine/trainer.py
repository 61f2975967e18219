"""Module path for scripts: `from whet.engine.trainer import VisionDataCollator`. Heavy."""

from __future__ import annotations

from .python_api.vision_collator import UnslothVisionDataCollator, VisionDataCollator

__all__ = ["UnslothVisionDataCollator", "VisionDataCollator"]
