"""The terminal front end, and `cli.py`, its headless door."""
