"""Answers before and after: which prompts, and that they are greedy and of the role."""

import pytest
import torch

from lite_align.data.render import Renderer
from lite_align.errors import TooLittleMemory
from lite_align.model.backbone import Role
from lite_align.stages import answers
from lite_align.stages.pairs import PAIRS
from lite_align.train.faults import TokenBudget
from tests.stages import small


def test_probes_are_different_prompts_of_many_categories():
    rows = [
        {"prompt": f"{category} {n // 2}?", "chosen": "a", "rejected": f"b {n}", "category": category}
        for category, count in (("often", 40), ("seldom", 4), ("once", 1))
        for n in range(count)
    ]
    probes = [row for row, _ in answers.probes(small.as_pairs(rows), PAIRS.prompt)]
    assert len(probes) == answers.PROBES
    assert len({pair.prompt for pair in probes}) == answers.PROBES
    assert [pair.category for pair in probes] == [
        "often",
        "seldom",
        "once",
        "often",
        "seldom",
        *["often"] * 15,
    ]
    assert answers.probes([], PAIRS.prompt) == []


@pytest.fixture
def asked(tiny_llama, monkeypatch):
    """A model whose policy is not its base, a renderer, and three prompts of different lengths."""
    monkeypatch.setattr(answers, "PROBE_TOKENS", 6)
    model = small.backbone(tiny_llama)
    with torch.no_grad():
        for _, parameter in model.parameters(Role.POLICY):
            parameter.add_(0.2)
    pairs = small.as_pairs(small.rows(2)) + small.as_pairs(
        [{"prompt": "A longer question than the others?", "chosen": "a", "rejected": "b"}]
    )
    return model, Renderer(model.loaded.tokenizer), [pair.prompt for pair in pairs]


def test_answers_are_greedy_and_of_the_role(asked):
    model, renderer, prompts = asked
    advanced: list[int] = []
    base, again, policy = (
        answers.answers(model, role, renderer, prompts, TokenBudget(10_000), advanced.append)
        for role in (Role.REFERENCE, Role.REFERENCE, Role.POLICY)
    )
    assert base == again
    assert [answer.text for answer in base] != [answer.text for answer in policy]
    assert all(0 < answer.tokens <= 6 for answer in [*base, *policy])
    assert advanced == [3, 3, 3]  # one batch each


def test_answers_do_not_depend_on_the_batch_and_survive_memory_that_runs_out(asked, monkeypatch):
    model, renderer, prompts = asked
    alone = answers.answers(model, Role.POLICY, renderer, prompts, TokenBudget(1))
    generate, sizes, told = model.generate, [], []

    def short(batch, **options):
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("out of memory")
        return generate(batch, **options)

    monkeypatch.setattr(model, "generate", short)
    most = 1
    budget = TokenBudget(10_000, tell=told.append)
    assert answers.answers(model, Role.POLICY, renderer, prompts, budget) == alone
    assert sizes[0] == 3
    assert sizes[-3:] == [1, 1, 1]
    assert told
    assert budget.tokens == 10_000  # training passes need another kind of memory
    most = 0
    with pytest.raises(TooLittleMemory, match="before and after"):
        answers.answers(model, Role.POLICY, renderer, prompts, budget)


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [
        ([3, 9, 4], 8, [[0, 2], [1]]),
        ([4, 4, 4], 8, [[0, 1], [2]]),
        ([5], 1, [[0]]),
        ([], 8, []),
    ],
)
def test_batches_hold_their_padding_too(lengths, tokens, expected):
    assert answers.batches(lengths, range(len(lengths)), tokens) == expected
