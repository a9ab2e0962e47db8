"""chat: the conversation grows, /base and /new work, and a run's adapter is really used."""

import io
import json

import pytest

from lite_align.data.types import Message
from lite_align.errors import UserError
from lite_align.recipe import DPORecipe, LoraOptions, ModelOptions, to_dict
from lite_align.stages import chat
from lite_align.view import View


def talk(lines: list[str]) -> tuple[list[tuple], str]:
    asked, out = [], io.StringIO()

    def answer(conversation, with_adapter):
        asked.append((conversation, with_adapter))
        return f"answer {len(asked)}"

    def read_line() -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    chat.converse(answer, View(file=out, errors=out), read_line)
    return asked, out.getvalue()


def test_a_conversation_keeps_its_turns():
    asked, out = talk(["Hi", "/base", "And?", "/new", "/base", "Again"])
    first, second = Message("user", "Hi"), Message("assistant", "answer 1")
    assert asked == [
        ((first,), True),
        ((first,), False),
        ((first, second, Message("user", "And?")), True),
        ((Message("user", "Again"),), True),
    ]
    assert " answer    answer 1" in out
    assert " base      answer 2" in out


def test_an_empty_line_ends():
    assert talk(["", "never"])[0] == []


def test_what_is_no_run_is_refused(tmp_path):
    view = View(file=io.StringIO(), errors=io.StringIO())
    with pytest.raises(UserError, match="not a run folder"):
        chat.chat(tmp_path, view)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no adapter yet"):
        chat.chat(tmp_path, view)


def test_it_answers_with_the_adapter_of_the_run(tmp_path, tiny_llama, monkeypatch):
    import torch

    from lite_align.model.backbone import Backbone, Role
    from lite_align.model.load import load_model

    torch.set_num_threads(1)
    options = ModelOptions(name=str(tiny_llama), quantization="none", dtype="float32")
    recipe = DPORecipe(model=options, lora=LoraOptions(rank=4))
    backbone = Backbone(load_model(options, device="cpu"), recipe.lora, seed=0)
    moved = {name: torch.full_like(t, 0.5) for name, t in backbone.adapter_tensors(Role.POLICY).items()}
    backbone.set_adapter_tensors(Role.POLICY, moved)
    backbone.save_adapter(Role.POLICY, tmp_path / "adapters" / "policy")
    record = {"schema": 1, "stage": "dpo", "status": "finished", "recipe": to_dict(recipe)}
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(chat, "MAX_NEW_TOKENS", 8)
    answer, name = chat.load(tmp_path, tmp_path / "adapters" / "policy")
    question = (Message("user", "Hello world"),)
    assert name == str(tiny_llama)
    assert answer(question, True) == answer(question, True)
    assert answer(question, True) != answer(question, False)
