"""Loss functions: pure, on torch alone."""
