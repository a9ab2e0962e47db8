"""From answers to the next preferences: candidates, labels, judges, comparisons, gates, and the loop over them."""
