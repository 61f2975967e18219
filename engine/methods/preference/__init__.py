"""Learning from comparisons of answers, and from verdicts on them."""
