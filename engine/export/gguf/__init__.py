"""GGUF files: written by our own converter, quantised and checked by llama.cpp in processes of its own."""
