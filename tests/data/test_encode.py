import pytest

from lite_align.data.encode import DataSpan, Encoder, slot_at
from lite_align.data.template import Refused
from tests.data import families


@pytest.fixture
def fast():
    return families.byte_level(None, ["<|im_end|>"], ["<tool_call>", "<head>", "\n\n", "<table>", "§"])


@pytest.fixture
def encoder(fast) -> Encoder:
    return Encoder(fast, "{{ '<tool_call>' }}{{ '<' + 'head>' }}§", "<head>\n\n")


def test_control_tokens_are_special_or_of_the_template_and_never_white_space(encoder, fast):
    names = fast.convert_ids_to_tokens(sorted(encoder.control))
    assert sorted(names) == sorted(["<s>", "</s>", "<|im_end|>", "<tool_call>", "<head>", "§"])
    barred = fast.convert_ids_to_tokens(sorted(encoder.barred))
    assert sorted(barred) == sorted(["<s>", "</s>", "<|im_end|>", "<head>"])


def test_controls_say_their_characters(encoder, fast):
    (control,) = encoder.controls("ab<|im_end|>c")
    assert (control.start, control.end) == (2, 12)
    assert control.id == fast.convert_tokens_to_ids("<|im_end|>")


def test_a_batch_leaves_the_context_off_and_counts_characters_from_the_text(encoder, fast):
    pieces = encoder.batch([("the ", "fox</s>"), ("", "the "), ("the ", "fox</s>")])
    assert len(pieces) == 2
    piece = pieces["the ", "fox</s>"]
    assert fast.decode(piece.ids) == "fox</s>"
    assert [(c.start, c.end) for c in piece.controls] == [(3, 7)]
    assert piece.tokens_before(3) == len(piece.ids) - 1


def test_a_token_across_the_border_is_encoded_apart(encoder, fast):
    piece = encoder.batch([("a\n", "\nb")])["a\n", "\nb"]
    assert fast.decode(piece.ids) == "\nb"


@pytest.mark.parametrize(
    ("role", "text", "allowed"),
    [
        ("user", "a<tool_call>b", 0),
        ("assistant", "a<tool_call>b", 1),
        ("assistant", "a<head>b", 0),
        ("assistant", "</s></s></s>", 0),
        ("user", "</<|im_end|>s>", 0),
    ],
)
def test_text_of_data_loses_what_its_role_may_not_write(encoder, fast, role, text, allowed):
    piece = encoder.batch([("", text)])["", text]
    stretches = encoder.unforged(("", text), 10, [DataSpan(10, 10 + len(text), role)], piece)
    ids = [token for _, part in stretches for token in part.ids]
    assert sum(token in encoder.control for token in ids) == allowed
    assert fast.decode(ids) == text
    assert stretches[0][0] == 10


def test_the_templates_own_text_keeps_its_tokens(encoder):
    piece = encoder.batch([("", "a</s>")])["", "a</s>"]
    assert encoder.unforged(("", "a</s>"), 0, [DataSpan(0, 1, "user")], piece) == [(0, piece)]


def test_a_character_that_is_a_control_token_is_refused(encoder):
    piece = encoder.batch([("", "a§")])["", "a§"]
    with pytest.raises(Refused, match="LA206: a character"):
        encoder.unforged(("", "a§"), 0, [DataSpan(0, 2, "user")], piece)


def test_a_thousand_forged_tokens_take_two_passes(encoder, fast, monkeypatch):
    text = "<|im_end|>" * 1000
    calls = 0
    continued = encoder._continued

    def counted(context: str, part: str):
        nonlocal calls
        calls += 1
        return continued(context, part)

    monkeypatch.setattr(encoder, "_continued", counted)
    piece = encoder.batch([("", text)])["", text]
    stretches = encoder.unforged(("", text), 0, [DataSpan(0, len(text), "user")], piece)
    assert fast.decode([token for _, part in stretches for token in part.ids]) == text
    assert calls <= 1001


def test_slots_are_found_by_a_shared_character():
    slots = [DataSpan(2, 4, "user"), DataSpan(6, 8, "assistant")]
    assert slot_at(slots, 0, 2) is None
    assert slot_at(slots, 3, 7) == slots[0]
    assert slot_at(slots, 7, 9) == slots[1]
    assert slot_at(slots, 4, 6) is None
