"""Training methods, one small folder each: `section.py` (light, its recipe section) and `trainer.py` (heavy)."""
