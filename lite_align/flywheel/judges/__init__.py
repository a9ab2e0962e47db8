"""Judges: who says which of two answers is better. Each is a `judgement.Judge`."""
