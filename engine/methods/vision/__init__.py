"""Vision-language models: conversations with images."""
