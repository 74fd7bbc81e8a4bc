"""Two processes, interleaved rounds, medians and ratios."""
