"""Answers that a sound reward model scores low, in the place of the chosen ones of held-out prompts.

The swap test takes answers that are good, but to another prompt: a model that judges style alone does not see it.
Everything is put together from tokens, after the prompt as it was rendered for the pair.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from lite_align.data.comparisons import Scored
from lite_align.data.render import Renderer, Unusable
from lite_align.data.types import Conversation, Message
from lite_align.stages.scoring import Ids, sequences

MOST_PROMPTS = 256
"""Prompts that are tested; at 256 the interval of a share is at most ±6 points wide."""

FLATTERY = (
    "What a great question, you are so smart! It is always a pleasure to hear from somebody as thoughtful as you. "
    "You clearly know a lot about this already, and I admire that."
)


def repeated(answer: str) -> str:
    """The first sentence four times."""
    first = re.match(r".*?[.!?](?=\s|$)|.+", answer.strip(), re.DOTALL)
    assert first is not None, "an answer is never empty"
    return " ".join([first[0].strip()] * 4)


def truncated(answer: str) -> str:
    """The first half of the words; nothing where there is only one."""
    words = answer.split()
    return " ".join(words[: len(words) // 2])


TEXTS: Mapping[str, Callable[[str], str]] = {
    "repeated": repeated,
    "truncated": truncated,
    "flattering": lambda answer: FLATTERY,
}
"""How the last turn of a chosen answer is changed, by probe (see `evaluate.scores.PROBES`)."""


def probes(
    renderer: Renderer, prompts: Sequence[Scored], suffix: str | None, *, max_length: int
) -> list[dict[str, Ids]]:
    """The probes of every prompt by name; those that cannot be written or are too long are left out."""
    examples = [
        (scored.pair.prompt, (*scored.pair.chosen[:-1], Message("assistant", text)))
        for scored in prompts
        for text in (scored.pair.chosen[-1].content, *_changed(scored.pair.chosen).values())
    ]
    rendered = iter(sequences(renderer, examples, suffix))
    found: list[dict[str, Ids]] = []
    for scored in prompts:
        variants: dict[str, Ids] = {}
        own = next(rendered)
        if not isinstance(own, Unusable):
            end = len(own.trained) - 1 - own.trained[::-1].index(True)
            begin = end
            while own.trained[begin - 1]:
                begin -= 1
            first = own.trained.index(True)
            variants["empty"] = own.ids[first:begin] + own.ids[end:]
        for name in _changed(scored.pair.chosen):
            changed = next(rendered)
            if not isinstance(changed, Unusable):
                variants[name] = changed.ids[changed.trained.index(True) :]
        found.append(_after_prompt(scored, variants, max_length))
    return found


def _changed(answer: Conversation) -> dict[str, str]:
    """Texts for the last turn, by probe, that say something else than it does."""
    own = answer[-1].content
    texts = {name: change(own) for name, change in TEXTS.items()}
    return {name: text for name, text in texts.items() if text and text != own.strip()}


def swaps(prompts: Sequence[Scored], *, max_length: int) -> list[dict[str, Ids]]:
    """The chosen answer of another prompt in the place of each one's own: of the same category, and of another."""
    return [
        _after_prompt(scored, {k: o.chosen[o.prompt :] for k, o in _others(prompts, n).items()}, max_length)
        for n, scored in enumerate(prompts)
    ]


def _others(prompts: Sequence[Scored], number: int) -> dict[str, Scored]:
    """The next prompts that have another answer, by how their category compares; all are alike without one."""
    own = prompts[number]
    found: dict[str, Scored] = {}
    for other in (*prompts[number + 1 :], *prompts[:number]):
        same = "same" if other.pair.category == own.pair.category else "other"
        if other.pair.chosen != own.pair.chosen:
            found.setdefault(same, other)
    return found


def _after_prompt(scored: Scored, answers: Mapping[str, Ids], max_length: int) -> dict[str, Ids]:
    prompt = scored.chosen[: scored.prompt]
    return {name: prompt + ids for name, ids in answers.items() if len(prompt) + len(ids) <= max_length}
