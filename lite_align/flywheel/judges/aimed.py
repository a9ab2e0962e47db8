"""Text in an answer that is aimed at whoever judges it, and fences that no answer can forge. No torch.

Flags are for people to look at: they never change a choice.
"""

import random
import re
from collections.abc import Mapping, Sequence

from lite_align.data.votes import Comparison

CONTROL = re.compile(
    r"<[|｜][^<>\n]{1,40}[|｜]>|</?s>|<(?:start|end)_of_turn>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT)\]",
    re.IGNORECASE,
)
"""Spellings of control tokens of well-known chat templates."""

PHRASES: Mapping[str, re.Pattern[str]] = {
    "control token": CONTROL,
    "role turn": re.compile(
        r"^\s*(?:#+\s*)?(?:system|user|human|assistant)\s*:", re.IGNORECASE | re.MULTILINE
    ),
    "instruction to forget": re.compile(
        r"\b(?:ignore|disregard|forget|override)\b.{0,30}\b(?:previous|prior|above|earlier|all|other)\b",
        re.IGNORECASE | re.DOTALL,
    ),
    "choice": re.compile(
        r"\b(?:choose|pick|select|prefer|vote for|output|reply|answer with|respond with)\W+"
        r"(?:only\W+|just\W+|the\W+)*(?:answer|response|option|letter)?\W*[ab]\b(?!\s\w)",
        re.IGNORECASE,
    ),
    "claim about an answer": re.compile(
        r"\b(?:answer|response|assistant|option)\s+[ab]\b.{0,40}\b(?:best|better|worse|wins?|correct|wrong|harmful|loses?)\b",
        re.IGNORECASE,
    ),
    "other answer": re.compile(r"\b(?:the|an)?other\s+(?:answer|response|candidate|option)\b", re.IGNORECASE),
    "verdict": re.compile(r"\bverdict\b|[\"']winner[\"']\s*:|\bthe winner is\b|\[\[[ab]\]\]", re.IGNORECASE),
    "address to a judge": re.compile(
        r"\b(?:judge|grader|evaluator|rater|annotator)s?\b\W.{0,40}\b(?:you|must|should|note|please|choose)\b"
        r"|\b(?:note|message|dear)\b.{0,12}\b(?:judge|grader|evaluator|rater)\b",
        re.IGNORECASE,
    ),
    "fence": re.compile(
        r"\b(?:answer|conversation)\s+[ab]?\s*(?:begins|ends)\b|\bend of (?:answer|response)\b", re.IGNORECASE
    ),
}
"""What is flagged, by name."""


def flags(comparison: Comparison) -> tuple[str, ...]:
    """The names of the phrases in either answer, in the order of `PHRASES`."""
    return tuple(
        name for name, phrase in PHRASES.items() if phrase.search(comparison.a) or phrase.search(comparison.b)
    )


def fence(seed: str, texts: Sequence[str]) -> str:
    """A mark of 16 hexadecimal digits that occurs in none of the texts, drawn from a seed.

    Whoever writes a text cannot forge it, even if he knows the seed: a mark that a text holds is not taken.
    """
    draw = random.Random(seed)
    lowered = [text.lower() for text in texts]
    while True:
        mark = f"{draw.getrandbits(64):016x}"
        if not any(mark in text for text in lowered):
            return mark


def spelled_out(text: str) -> str:
    """The text with a space inside every spelling of a control token: for a tokenizer that would take it for one."""
    return CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
