"""Embedding models: texts as vectors, trained on pairs that belong together."""
