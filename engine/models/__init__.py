"""Models: facts and memory (light), loading, quantization, adapters (in the worker)."""
