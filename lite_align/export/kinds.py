"""What `lite-align export --to` can write."""

from enum import StrEnum


class Kind(StrEnum):
    """The forms of an export."""

    ADAPTER = "adapter"
    MERGED = "merged"
    OLLAMA = "ollama"
    GGUF = "gguf"
