"""The base model: loading, adapters and roles, packed attention, log-probs and generation."""

import logging

_KNOWN = {
    # Said on import where a hub kernel for CPU inference is not installed; `load` switches that path off anyway.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Said by every int8 layer in every forward pass; it is how int8 works.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Loggers of bitsandbytes (0.50) and the one message of each that says nothing to a user."""

for _name, _start in _KNOWN.items():
    logging.getLogger(_name).addFilter(lambda record, start=_start: not str(record.msg).startswith(start))
