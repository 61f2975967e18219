"""Several processes at one run: who is which, what they agree on, what they share out."""
