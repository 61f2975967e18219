"""Speech recognition: sounds become text (Whisper)."""
