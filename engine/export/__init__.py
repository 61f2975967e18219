"""From trained weights to files people run, each with its proof."""
