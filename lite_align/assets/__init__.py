"""The world of the built-in model, its training, its files, and the sample data drawn from it."""
