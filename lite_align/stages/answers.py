"""Greedy answers to a few held-out prompts, before and after a run: what a person looks at first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lite_align.data.render import Renderer
from lite_align.data.types import Conversation, Row
from lite_align.model.backbone import Backbone, Role
from lite_align.view import View

PROBES = 8  # held-out prompts that are answered before and after
PROBE_TOKENS = 128
SHOWN = 3

RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its text and number of tokens."""

    text: str
    tokens: int


def probes(rows: Sequence[RowT], prompt: Callable[[RowT], Conversation]) -> list[tuple[RowT, Conversation]]:
    """Up to eight rows with different prompts, from as many categories as there are, each with its prompt."""
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
    advance: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Greedy answers to prompts under a role, at most `PROBE_TOKENS` long."""
    found = []
    for prompt in prompts:
        with backbone.role(role):
            (ids,) = backbone.generate(
                [renderer.prompt_ids(prompt)], stop_ids=renderer.stop_ids, max_new_tokens=PROBE_TOKENS
            )
        text = backbone.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
        found.append(Answer(str(text).strip(), len(ids)))
        advance()
    return found


def before_and_after(
    backbone: Backbone,
    renderer: Renderer,
    rows: Sequence[RowT],
    prompt: Callable[[RowT], Conversation],
    view: View,
) -> list[dict[str, Any]]:
    """Rows of answers.jsonl: the prompts of some held-out rows, answered by REFERENCE and by POLICY."""
    asked = probes(rows, prompt)
    prompts = [conversation for _, conversation in asked]
    with view.bar("answers", 2 * len(asked), "answers") as bar:
        before = answers(backbone, Role.REFERENCE, renderer, prompts, bar.advance)
        after = answers(backbone, Role.POLICY, renderer, prompts, bar.advance)
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
