"""Talking to a model: base beside tuned beside GGUF. The models live in a process of their own."""
