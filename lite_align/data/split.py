"""Hold out some prompts with all their rows, so that no prompt is both trained and tested (LA304)."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from lite_align.data.types import Conversation, Row, Source
from lite_align.errors import DataError, RecipeError

RowT = TypeVar("RowT", bound=Row)


def text_key(text: str) -> str:
    """Normalise a text for comparison: NFC, case and white space do not count."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def prompt_key(prompt: Conversation) -> tuple[tuple[str, str], ...]:
    """Normalise a prompt; the system text does not count, so that a question never straddles a split."""
    return tuple((turn.role, text_key(turn.content)) for turn in prompt if turn.role != "system")


def hold_out(
    rows: Sequence[RowT],
    prompt: Callable[[RowT], Conversation],
    share: float,
    seed: int,
    *,
    noun: str = "rows",
) -> tuple[list[RowT], list[RowT]]:
    """Split into training and held-out rows by prompt; both keep the order of the file.

    `share` is the part of the prompts to hold out, at least one and never all; 0 holds out none. Which ones
    depends on `seed` and the prompts alone, not on the order of rows. Categories keep their proportions.

    Raises:
        RecipeError: `share` is not in [0, 1).
        DataError: there are fewer than two prompts.
    """
    if not 0 <= share < 1:
        raise RecipeError(f"data.held_out is {share:g}; a share from 0 to below 1 expected")
    if share == 0:
        return list(rows), []
    keys = [prompt_key(prompt(row)) for row in rows]
    categories = _categories(rows, keys)
    if len(categories) < 2:
        raise DataError(
            f"{len(rows):,} {noun}, {len(categories)} prompt; two prompts are needed to hold one out",
            remedy="Add prompts, give a file of its own with --set data.held_out_path=FILE, or train without "
            "one: --set data.held_out=0",
        )
    count = min(max(1, round(share * len(categories))), len(categories) - 1)
    held = set(_ranked(categories, seed)[:count])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held]


_Key = tuple[tuple[str, str], ...]


def _categories(rows: Sequence[Row], keys: Sequence[_Key]) -> dict[_Key, str]:
    """Give each prompt one category: the first by name that its rows have."""
    found: dict[_Key, str] = {}
    for row, key in zip(rows, keys, strict=True):
        category = row.category or ""
        found[key] = min(found.get(key, category), category)
    return found


def _ranked(categories: dict[_Key, str], seed: int) -> list[_Key]:
    """Order prompts so that every beginning of the list has each category in proportion."""
    by_hash = sorted(categories, key=lambda key: _hash(key, seed))
    sizes = Counter(categories.values())
    seen: Counter[str] = Counter()
    places: list[tuple[float, bytes, _Key]] = []
    for key in by_hash:
        category = categories[key]
        places.append(((seen[category] + 0.5) / sizes[category], _hash(key, seed), key))
        seen[category] += 1
    return [key for _, _, key in sorted(places)]


def _hash(key: _Key, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{key!r}".encode("utf-8", "surrogatepass")).digest()


def shared_prompts(
    train: Sequence[RowT], held_out: Sequence[RowT], prompt: Callable[[RowT], Conversation]
) -> list[tuple[Source, Source]]:
    """List held-out rows (first) whose prompt is trained too (second): leaks of a separate held-out file."""
    trained: dict[_Key, Source] = {}
    for row in train:
        trained.setdefault(prompt_key(prompt(row)), row.source)
    return [(row.source, trained[key]) for row in held_out if (key := prompt_key(prompt(row))) in trained]
