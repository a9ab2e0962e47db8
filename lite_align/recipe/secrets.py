"""What looks like an access token or a password: refused in recipes, hidden in everything that is printed."""

import re

_SECRET = re.compile(r"\b(?:hf_|sk[-_])[A-Za-z0-9_-]{16,}|(?<=://)[^/@\s]+(?=@)")


def holds_secret(text: str) -> bool:
    """Whether the text has a Hugging Face or API token, or a URL with a password."""
    return _SECRET.search(text) is not None


def redact(text: str) -> str:
    """The text with tokens and passwords replaced."""
    return _SECRET.sub("[hidden]", text)
