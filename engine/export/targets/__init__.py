"""What an export writes beside GGUF models: 4-bit and FP8 weights, the adapter as a GGUF; with proofs."""
