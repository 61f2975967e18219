"""The assistant: answers from the built-in guide, offline, without a model."""
