"""New run, a part a file: the draft, six steps, the screen that arranges them."""

from .screen import NewRunScreen

__all__ = ["NewRunScreen"]
