"""Tags of words: token classification."""
