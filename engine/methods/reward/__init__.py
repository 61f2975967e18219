"""Models that score answers, from comparisons of them."""
