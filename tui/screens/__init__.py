"""One file a screen; a screen with parts has a folder."""
