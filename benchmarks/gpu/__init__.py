"""Measurements on a CUDA card: `python -m benchmarks.gpu {tests,dpo,unsloth,memory}`, at most ten minutes each.

Runs without a network and with the machine's own torch; what is missing comes along as wheels (`wheels.py`). Each
side runs in its own process on the same random weights and the same rows, and `tables.py` reads nothing but the
files that were written.
"""
