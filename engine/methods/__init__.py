"""Training methods, one small folder each: `section.py` (light, the recipe's) and `trainer.py` (heavy)."""
