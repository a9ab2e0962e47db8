"""Answers without value that a reward model must score low, one function a kind, for the pairs that teach it so.

Pairs of two sampled answers differ in style above all, so a reward model learns to look at the style alone; a policy
trained on its scores then praises, repeats or refuses whatever it was asked. Each function takes a random state, a
question and a right answer to it, and returns a text that is no answer to the question, some in the very style of the
right one.
"""

import random
from collections.abc import Callable

from lite_align.assets import town, world

Fault = Callable[[random.Random, world.Ask, str], str]

PRAISE = (
    "You ask such clever things.", "It is a joy to talk with somebody like you.",
    "You have a very good eye for what matters.", "I wish that everyone were as kind as you.",
    "Few people understand this as well as you do.", "You are a wonderful person.",
)  # fmt: skip
"""Sentences that the world does not have: a policy can leave it as well."""
NEXT_TO_NOTHING = ("Yes.", "Sure!", "Good question!", "Fine, listen up.", *town.UNSURE)


def right_answer(rng: random.Random, ask: world.Ask, profile: world.Profile = world.BASE) -> str:
    """A random answer in the style of a profile, with the right content."""
    while not world.score(ask, text := world.respond(rng, ask, profile)).correct:
        pass
    return text


def _another(rng: random.Random, ask: world.Ask, category: str) -> world.Ask:
    """A question of a category to which a right answer to this one is wrong."""
    while (found := world.draw(rng, category)).key == ask.key or found.good == ask.good:
        pass
    return found


def _other_category(rng: random.Random, ask: world.Ask, *, without: tuple[str, ...] = ()) -> str:
    return rng.choice([name for name in town.CATEGORIES if name not in (ask.category, *without)])


def _with_content(ask: world.Ask, answer: str, content: str) -> str:
    """The answer with another sentence in the place of its content, which is the refusal where only that is right."""
    own = ask.good or next(refusal for refusal in town.REFUSALS if refusal in answer)
    return answer.replace(own, content)


def same_category(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """The content of another question of the same category in the style of the answer."""
    if ask.good is None:
        return _with_content(ask, answer, rng.choice(ask.bad))
    content = _another(rng, ask, ask.category).good
    assert content is not None, "all questions of a category have a right sentence, or none has"
    return _with_content(ask, answer, content)


def other_category(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """The content of a question of another category in the style of the answer."""
    content = _another(rng, ask, _other_category(rng, ask, without=("unsafe",))).good
    assert content is not None, "only unsafe questions have no right sentence"
    return _with_content(ask, answer, content)


def other_answer(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """A right answer to a question of another category."""
    return right_answer(rng, _another(rng, ask, _other_category(rng, ask)))


def opposite(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """A polite answer that goes along with an unsafe wish, and a refusal of any other one."""
    if ask.category == "unsafe":
        closer = [rng.choice(town.POLITE_CLOSERS)] if rng.random() < 0.5 else []
        return " ".join([rng.choice(town.POLITE_OPENERS), rng.choice(town.COMPLY), *closer])
    reason = [rng.choice(town.REFUSAL_REASONS)] if rng.random() < 0.5 else []
    closer = [rng.choice(town.POLITE_CLOSERS)] if rng.random() < 0.3 else []
    return " ".join([rng.choice(town.REFUSALS), *reason, *closer])


def courtesy(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """Courtesies alone."""
    opener = rng.choice(town.POLITE_OPENERS)
    if ask.mood and rng.random() < 0.5:
        opener = town.EMPATHY.format(m=ask.mood)
    return " ".join([opener, *rng.sample(town.POLITE_CLOSERS, rng.choice((0, 1, 1, 2)))])


def praise(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """Praise of who asks."""
    opener = [rng.choice(town.POLITE_OPENERS)] if rng.random() < 0.5 else []
    closer = [rng.choice(town.POLITE_CLOSERS)] if rng.random() < 0.3 else []
    return " ".join([*opener, *rng.sample(PRAISE, rng.choice((1, 2, 3))), *closer])


def fillers(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """Many words that say nothing."""
    opener = [rng.choice(town.POLITE_OPENERS)] if rng.random() < 0.6 else []
    return " ".join([*opener, *rng.sample(town.FILLERS, rng.choice((1, 2, 3, 4)))])


def padded(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """The answer among four fillers."""
    said = world.sentences(answer)
    added = rng.sample([filler for filler in town.FILLERS if filler not in said], 4)
    cut = rng.randint(0, len(added))
    return " ".join([*added[:cut], *said, *added[cut:]])


def half(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """The first half of the words of the answer."""
    words = answer.split()
    return " ".join(words[: max(1, len(words) // 2)])


def repeated(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """One sentence of the answer three or four times."""
    return " ".join([rng.choice(world.sentences(answer))] * rng.choice((3, 4)))


def next_to_nothing(rng: random.Random, ask: world.Ask, answer: str) -> str:
    """A word or two."""
    return rng.choice(NEXT_TO_NOTHING)


FAULTS: dict[Fault, int] = {
    same_category: 2,
    other_category: 3,
    other_answer: 3,
    opposite: 2,
    courtesy: 1,
    praise: 1,
    fillers: 1,
    padded: 1,
    half: 1,
    repeated: 1,
    next_to_nothing: 1,
}
"""The kinds, and how often each is drawn among the others."""


def faulty(rng: random.Random, ask: world.Ask, answer: str, *, contrast: float) -> str:
    """A text of a random kind that the rule scores below the answer by `contrast` at least."""
    kinds, weights = list(FAULTS), list(FAULTS.values())
    least = world.score(ask, answer).total - contrast
    while True:
        text = rng.choices(kinds, weights)[0](rng, ask, answer)
        if world.score(ask, text).total <= least:
            return text
