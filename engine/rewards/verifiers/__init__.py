"""Built-in verifiers: pure functions from one completion, and what is right, to a score."""
