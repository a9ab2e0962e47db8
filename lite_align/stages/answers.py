"""Greedy answers to a few held-out prompts, before and after a run: what a person looks at first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from lite_align.data.render import Renderer
from lite_align.data.types import Conversation, Row
from lite_align.model.backbone import Backbone, Role
from lite_align.train.faults import Shortage, Size, TokenBudget, attempt
from lite_align.view import View

PROBES = 20  # held-out prompts that are answered before and after
PROBE_TOKENS = 128
SHOWN = 3

RowT = TypeVar("RowT", bound=Row)
Ids = Sequence[int]


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its text and number of tokens."""

    text: str
    tokens: int


def probes(rows: Sequence[RowT], prompt: Callable[[RowT], Conversation]) -> list[tuple[RowT, Conversation]]:
    """At most `PROBES` rows with different prompts, from as many categories as there are, each with its prompt."""
    by_category: dict[str | None, list[tuple[RowT, Conversation]]] = {}
    seen: set[Conversation] = set()
    for row in rows:
        asked = prompt(row)
        if asked not in seen:
            seen.add(asked)
            by_category.setdefault(row.category, []).append((row, asked))
    rounds = max(map(len, by_category.values()), default=0)
    ordered = [group[i] for i in range(rounds) for group in by_category.values() if i < len(group)]
    return ordered[:PROBES]


def answers(
    backbone: Backbone,
    role: Role,
    renderer: Renderer,
    prompts: Sequence[Conversation],
    budget: TokenBudget,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """Greedy answers to prompts under a role, at most `PROBE_TOKENS` long, as many at a time as fit the budget.

    Where memory runs out, the prompts that are left are answered in smaller batches.

    Raises:
        TooLittleMemory: not even one fits.
    """
    asked = [renderer.prompt_ids(prompt) for prompt in prompts]
    found: dict[int, Answer] = {}
    with backbone.role(role):
        for batch, told in _in_batches(backbone, asked, renderer.stop_ids, budget):
            for number, ids in zip(batch, told, strict=True):
                text = backbone.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
                found[number] = Answer(str(text).strip(), len(ids))
            advance(len(batch))
    return [found[number] for number in range(len(prompts))]


def _in_batches(
    backbone: Backbone, prompts: Sequence[Ids], stop_ids: frozenset[int], budget: TokenBudget
) -> Iterator[tuple[list[int], Sequence[Ids]]]:
    """The answers batch after batch, each with the numbers of its prompts."""
    lengths = [len(prompt) + PROBE_TOKENS for prompt in prompts]
    # A budget of its own: what a cache of keys and values needs says nothing of a training pass.
    own = budget.apart(budget.tokens)
    left = batches(lengths, range(len(lengths)), own.tokens)
    while left:
        batch = left[0]
        work = partial(
            backbone.generate,
            [prompts[number] for number in batch],
            stop_ids=stop_ids,
            max_new_tokens=PROBE_TOKENS,
            batch_size=len(batch),
        )
        told = attempt(work)
        if isinstance(told, Shortage):
            size = Size(len(batch) * lengths[batch[-1]], len(batch))
            own.lower(told, "the answers before and after", [size])
            left = batches(lengths, [number for part in left for number in part], own.tokens)
            continue
        yield left.pop(0), told


def batches(lengths: Sequence[int], numbers: Sequence[int], tokens: int) -> list[list[int]]:
    """Numbers of rows by length, in batches that hold at most so many tokens with their padding, or a single row.

    Lengths [3, 9, 4] and 8 tokens give [[0, 2], [1]].
    """
    found: list[list[int]] = []
    for number in sorted(numbers, key=lambda number: lengths[number]):
        if found and (len(found[-1]) + 1) * lengths[number] <= tokens:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def before_and_after(
    backbone: Backbone,
    renderer: Renderer,
    rows: Sequence[RowT],
    prompt: Callable[[RowT], Conversation],
    budget: TokenBudget,
    view: View,
) -> list[dict[str, Any]]:
    """Rows of answers.jsonl: the prompts of some held-out rows, answered by REFERENCE and by POLICY."""
    asked = probes(rows, prompt)
    prompts = [conversation for _, conversation in asked]
    with view.bar("answers", 2 * len(asked), "answers") as bar:
        before = answers(backbone, Role.REFERENCE, renderer, prompts, budget, bar.advance)
        after = answers(backbone, Role.POLICY, renderer, prompts, budget, bar.advance)
    return [
        {
            "prompt": conversation[-1].content,
            "category": row.category,
            "before": b.text,
            "after": a.text,
            "before_tokens": b.tokens,
            "after_tokens": a.tokens,
        }
        for (row, conversation), b, a in zip(asked, before, after, strict=True)
    ]


def show(told: Sequence[Mapping[str, Any]], view: View) -> None:
    """Print a few answers, those first that changed."""
    changed = sorted(told, key=lambda row: row["before"] == row["after"])
    view.answers([(row["prompt"], row["before"], row["after"]) for row in changed[:SHOWN]])
