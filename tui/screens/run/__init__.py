"""One run: curves, figures, samples, findings, files, log; and what can be asked of it."""

from .screen import RunScreen

__all__ = ["RunScreen"]
