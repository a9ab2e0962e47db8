"""Generation: the batch, the train mode and the random state leave no trace, and stop ids end an answer."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from lite_align.model.generate import generate
from lite_align.model.load import load_model
from lite_align.recipe import ModelOptions

PROMPTS = [(1, 20, 30, 40, 50, 60, 70), (1, 9), (1, 33, 44, 55), (200,), tuple(range(5, 25))]


@pytest.fixture(scope="module", params=["none", "nf4"])
def model(request: pytest.FixtureRequest, tiny_llama: Path) -> PreTrainedModel:
    options = ModelOptions.model_validate({"name": str(tiny_llama), "quantization": request.param})
    return load_model(options, device="cpu").model


def greedy_by_hand(
    model: PreTrainedModel, prompt: tuple[int, ...], stop: int, length: int
) -> tuple[int, ...]:
    """The likeliest token, one full forward pass for each, no cache and no padding."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) - len(prompt) < length and (len(ids) == len(prompt) or ids[-1] != stop):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_greedy_answers_do_not_depend_on_the_batch(model: PreTrainedModel):
    stop = greedy_by_hand(model, PROMPTS[0], -1, 3)[-1]
    expected = [greedy_by_hand(model, prompt, stop, 8) for prompt in PROMPTS]
    assert expected[0][-1] == stop
    assert {len(answer) for answer in expected} != {8}
    for size in (1, 2, 16):
        found = generate(model, PROMPTS, stop_ids={stop}, max_new_tokens=8, batch_size=size)
        assert found == expected


def test_without_a_stop_id_answers_run_to_the_limit(model: PreTrainedModel):
    assert {len(a) for a in generate(model, PROMPTS, stop_ids=set(), max_new_tokens=5)} == {5}


def test_sampling_follows_its_seed_and_leaves_the_global_state(model: PreTrainedModel):
    state = torch.get_rng_state()

    def sample(seed: int) -> list[tuple[int, ...]]:
        return generate(model, PROMPTS, stop_ids=set(), max_new_tokens=6, temperature=1.0, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_goes_from_greedy_to_uniform(model: PreTrainedModel):
    def tokens(temperature: float) -> set[int]:
        rows = generate(
            model, [(1, 9)] * 64, stop_ids=set(), max_new_tokens=4, temperature=temperature, batch_size=64
        )
        return {token for row in rows for token in row}

    assert len(tokens(1e-4)) <= 4
    assert len(tokens(1e4)) > 100  # 256 draws from 384 tokens


def test_modes_and_defaults_come_back(model: PreTrainedModel):
    """The model's own defaults (here: forbid what greedy decoding would say) play no part."""
    expected = generate(model, PROMPTS[:2], stop_ids=set(), max_new_tokens=4)
    own = GenerationConfig(suppress_tokens=sorted({t for a in expected for t in a}), repetition_penalty=9.0)
    model.generation_config = own
    model.train()
    model.get_submodule("model.norm").eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, PROMPTS[:2], stop_ids=set(), max_new_tokens=4) == expected
    assert model.generation_config is own
    assert [module.training for module in model.modules()] == modes
    model.generation_config = GenerationConfig()
    model.train()


def test_no_prompts_and_an_empty_prompt(model: PreTrainedModel):
    assert generate(model, [], stop_ids={2}, max_new_tokens=4) == []
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [(1,), ()], stop_ids={2}, max_new_tokens=4)


def test_tokens_are_told_as_they_are_chosen(model: PreTrainedModel):
    stop = greedy_by_hand(model, PROMPTS[0], -1, 3)[-1]
    for temperature in (0.0, 1.0):
        told: list[int] = []
        options = {"stop_ids": {stop}, "max_new_tokens": 8, "temperature": temperature, "seed": 3}
        (answer,) = generate(model, PROMPTS[:1], **options, tell=told.append)
        assert tuple(told) == answer
        assert generate(model, PROMPTS[:1], **options) == [answer]
    with pytest.raises(ValueError, match="one prompt at a time"):
        generate(model, PROMPTS[:2], stop_ids=set(), max_new_tokens=4, tell=told.append)


def test_what_the_listener_raises_ends_the_answer_and_nothing_stays_changed(model: PreTrainedModel):
    def stop_after_two(token: int) -> None:
        told.append(token)
        if len(told) == 2:
            raise KeyboardInterrupt

    told: list[int] = []
    own = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS[:1], stop_ids=set(), max_new_tokens=8, tell=stop_after_two)
    assert len(told) == 2
    assert model.generation_config is own
    assert model.training


def test_top_p_takes_the_smallest_set_with_that_probability(model: PreTrainedModel):
    prompt = PROMPTS[0]
    with torch.no_grad():
        likely = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].softmax(-1)
    ranked = likely.sort(descending=True)
    allowed = int((ranked.values.cumsum(0) < 0.1).sum()) + 1
    rows = generate(
        model,
        [prompt] * 256,
        stop_ids=set(),
        max_new_tokens=1,
        temperature=1.0,
        top_p=0.1,
        batch_size=256,
    )
    drawn = {row[0] for row in rows}
    assert 1 < allowed < 200
    assert drawn <= set(ranked.indices[:allowed].tolist())
    assert len(drawn) > allowed / 2
