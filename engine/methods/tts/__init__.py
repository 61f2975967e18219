"""Speaking language models: text becomes the codes of an audio codec."""
