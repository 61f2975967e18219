"""Runs beside each other: curves overlaid, figures, recipes, answers."""

from .screen import CompareScreen

__all__ = ["CompareScreen"]
