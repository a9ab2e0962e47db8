"""What travels along: tokenizer and template byte for byte, a config without quantisation, every stop token."""

import json
import shutil

import pytest

from lite_align.errors import LiteAlignError
from lite_align.export import companions


def test_twenty_different_conversations():
    found = companions.conversations()
    assert len(set(found)) == 20
    assert {len([m for m in c if m.role != "system"]) for c in found} == {1, 3, 5}
    assert all(c[-1].role == "user" for c in found)


def test_the_tokenizer_is_copied_as_it_is(tmp_path, tiny_llama, tokenizer):
    companions.copy_tokenizer(tiny_llama, tmp_path)
    copied = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= copied.keys()
    assert copied == {name: (tiny_llama / name).read_bytes() for name in copied}
    assert not [name for name in copied if "safetensors" in name or name == "config.json"]
    assert companions.require_same_ids(tokenizer, tmp_path) == 20


@pytest.mark.parametrize("harm", ["template", "vocabulary"])
def test_another_tokenizer_is_noticed(tmp_path, tiny_llama, tokenizer, harm):
    companions.copy_tokenizer(tiny_llama, tmp_path)
    if harm == "template":
        file = tmp_path / "chat_template.jinja"
        file.write_text(file.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    else:
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        content["model"]["merges"] = content["model"]["merges"][:1]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LiteAlignError, match="LA802"):
        companions.require_same_ids(tokenizer, tmp_path)


def test_config_and_generation_config(tmp_path, tiny_llama, tokenizer):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny_llama, base)
    out.mkdir()
    config = json.loads((base / "config.json").read_text())
    config |= {"quantization_config": {"load_in_4bit": True}, "auto_map": {}, "torch_dtype": "float16"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.7}))
    companions.write_config(base, out, "bfloat16")
    companions.write_generation(base, out, tokenizer, {4})
    written = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in written
    assert "auto_map" not in written
    assert written["torch_dtype"] == "bfloat16"
    assert written["tie_word_embeddings"] is False
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 4], "temperature": 0.7, "bos_token_id": 1, "pad_token_id": 0}


def test_a_base_without_a_generation_config(tmp_path, tiny_llama, tokenizer):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(tiny_llama, base)
    out.mkdir()
    (base / "generation_config.json").unlink(missing_ok=True)
    companions.write_generation(base, out, tokenizer, {4})
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 4
