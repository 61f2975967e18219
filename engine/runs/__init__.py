"""A run is a directory; one worker process writes it; everyone else reads it."""
