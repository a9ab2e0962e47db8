"""Export: a finished run as a folder that other programs load, compared with the run before it is handed over."""

from enum import StrEnum


class Kind(StrEnum):
    """What `lite-align export --to` can write."""

    ADAPTER = "adapter"
    MERGED = "merged"
    OLLAMA = "ollama"
    GGUF = "gguf"
