"""A run's model in conversation: roles, seeds, positions, interruption; the text shown is the answer."""

import pytest

from lite_align.data.types import Message
from lite_align.errors import DataError, UserError
from lite_align.model.backbone import Role
from lite_align.stages.speaker import Reply, Sampling, Speaker
from lite_align.train.finished import read_finished
from tests import finished

QUESTION = (Message("user", "hello world"),)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama):
    return read_finished(finished.run(tmp_path_factory.mktemp("runs") / "run", tiny_llama, reference=True))


@pytest.fixture(scope="module")
def backbone(run):
    return run.backbone("cpu")


def speaker(backbone, *, positions=512, **options) -> Speaker:
    from lite_align.data.render import Renderer

    sampling = Sampling(**{"max_tokens": 12, **options})
    return Speaker(backbone, Renderer(backbone.loaded.tokenizer), sampling, positions)


def say(partner: Speaker, role=Role.POLICY, seed=0) -> Reply:
    shown: list[str] = []
    reply = partner.say(QUESTION, role, seed, shown.append)
    assert "".join(shown).strip() == reply.text
    return reply


def test_three_roles_answer_differently_and_the_role_comes_back(backbone):
    partner = speaker(backbone)
    assert partner.roles == (Role.POLICY, Role.REFERENCE, Role.BASE)
    assert len({say(partner, role).text for role in partner.roles}) == 3
    assert backbone.current_role is Role.POLICY


def test_a_run_without_a_reference_of_its_own_has_two_roles(tmp_path, tiny_llama):
    run = read_finished(finished.run(tmp_path / "run", tiny_llama))
    assert Speaker.load(run, Sampling(max_tokens=4)).roles == (Role.POLICY, Role.BASE)


def test_the_answer_is_that_of_the_backbone(backbone):
    partner = speaker(backbone)
    (ids,) = backbone.generate(
        [partner.renderer.prompt_ids(QUESTION)], stop_ids=partner.renderer.stop_ids, max_new_tokens=12
    )
    text = backbone.loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert say(partner).text == text


def test_sampling_follows_its_seed(backbone):
    partner = speaker(backbone, temperature=1.0, top_p=0.9)
    assert say(partner, seed=1) == say(partner, seed=1)
    assert say(partner, seed=1) != say(partner, seed=2)


def test_how_an_answer_ended_is_told(backbone):
    partner = speaker(backbone)
    assert say(partner).ended == "length"
    assert "--max-tokens" in say(partner).note
    first = backbone.generate(
        [partner.renderer.prompt_ids(QUESTION)], stop_ids=frozenset(), max_new_tokens=12
    )[0]
    partner.renderer.stop_ids = frozenset({first[-1]})
    stopped = say(partner)
    assert (stopped.ended, stopped.note) == ("stop", "")


def test_ctrl_c_keeps_what_was_said(backbone):
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 3:
            raise KeyboardInterrupt

    whole = say(speaker(backbone)).text
    reply = speaker(backbone).say(QUESTION, Role.POLICY, 0, show)
    assert reply.ended == "interrupted"
    assert reply.note == "stopped by you"
    assert reply.text
    assert whole.startswith(reply.text)
    assert backbone.current_role is Role.POLICY


def test_the_oldest_rounds_go_whole_until_the_longest_answer_fits(backbone):
    partner = speaker(backbone)
    system = Message("system", "Be kind.")
    rounds = [
        turn
        for n in range(4)
        for turn in (Message("user", f"question {n}"), Message("assistant", f"reply {n}"))
    ]
    conversation = (system, *rounds, Message("user", "last"))
    whole = len(partner.renderer.prompt_ids(conversation))
    two_less = len(partner.renderer.prompt_ids((system, *conversation[5:])))
    assert speaker(backbone, positions=whole + 12).fit(conversation) == (conversation, 0)
    fitted, dropped = speaker(backbone, positions=two_less + 12).fit(conversation)
    assert (fitted, dropped) == ((system, *conversation[5:]), 2)


def test_a_message_that_is_too_long_is_refused(backbone):
    with pytest.raises(DataError, match=r"This message has \d+ tokens; the model has 40 positions"):
        speaker(backbone, positions=40).fit((Message("user", "word " * 100),))
    with pytest.raises(UserError, match="leaves no room"):
        speaker(backbone, positions=12)
