"""Answers before and after: which prompts, and that they are greedy and of the role."""

import torch

from lite_align.data.render import Renderer
from lite_align.model.backbone import Role
from lite_align.stages import answers
from lite_align.stages.pairs import PAIRS
from tests.stages import small


def test_probes_are_different_prompts_of_many_categories():
    rows = [
        {"prompt": f"{category} {n // 2}?", "chosen": "a", "rejected": f"b {n}", "category": category}
        for category, count in (("often", 20), ("seldom", 4), ("once", 1))
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
        *["often"] * 3,
    ]
    assert answers.probes([], PAIRS.prompt) == []


def test_answers_are_greedy_and_of_the_role(tiny_llama, monkeypatch):
    monkeypatch.setattr(answers, "PROBE_TOKENS", 6)
    model = small.backbone(tiny_llama)
    with torch.no_grad():
        for _, parameter in model.parameters(Role.POLICY):
            parameter.add_(0.2)
    prompts, advanced = [pair.prompt for pair in small.as_pairs(small.rows(2))], []
    renderer = Renderer(model.loaded.tokenizer)
    base, again, policy = (
        answers.answers(model, role, renderer, prompts, lambda: advanced.append(1))
        for role in (Role.REFERENCE, Role.REFERENCE, Role.POLICY)
    )
    assert base == again
    assert [answer.text for answer in base] != [answer.text for answer in policy]
    assert all(0 < answer.tokens <= 6 for answer in [*base, *policy])
    assert len(advanced) == 6
