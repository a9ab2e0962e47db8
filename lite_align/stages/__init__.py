"""Stages: the only place where data, model and loss meet."""
