"""Learning from rewards: of its answers to a prompt, those that score better become likelier."""
