"""Names become folders, and what is unsafe or incomplete is refused before anything is loaded."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from lite_align.errors import ModelError
from lite_align.model import folder


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_the_built_in_model_is_inside_the_package():
    found = folder.locate("tiny")
    assert found.name == "tiny"
    assert found.parent.name == "assets"


def test_an_existing_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert folder.locate("owner/model") == Path("owner/model")
    assert folder.is_hub_id("another/model")
    # `owner` is a folder here, so a missing folder in it is a mistyped path.
    assert not folder.is_hub_id("owner/modle")


@pytest.mark.parametrize(
    "name", ["missing", "./missing", "/missing/model", "~/missing/model", "a/b/c", "here/missing"]
)
def test_a_missing_path_never_asks_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(folder, "_download", no_network)
    with pytest.raises(ModelError, match="There is no folder") as caught:
        folder.locate(name)
    assert "tiny" in caught.value.remedy


def test_an_unreachable_hub_names_the_two_ways_without_it():
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        folder.locate("owner/model")
    assert "--model PATH" in caught.value.remedy
    assert "--model tiny" in caught.value.remedy


def test_a_file_is_not_a_model(tmp_path: Path):
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        folder.locate(str(tmp_path / "model.gguf"))


def test_no_config_and_an_adapter_in_place_of_a_model(tmp_path: Path):
    with pytest.raises(ModelError, match="no config"):
        folder.read_config(tmp_path, "it")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter, not a model") as caught:
        folder.read_config(tmp_path, "it")
    assert "base model" in caught.value.remedy


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object(text: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="JSON"):
        folder.read_config(tmp_path, "it")


def test_a_whole_folder_passes(copy: Path):
    folder.check(copy, "it")


def test_all_that_is_missing_is_said_at_once(copy: Path):
    for file in ("model.safetensors", "tokenizer.json"):
        (copy / file).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        folder.check(copy, "it")
    assert caught.value.details == ("it has only pickled weights", "it has no tokenizer (no tokenizer.json)")
    assert "save_pretrained" in caught.value.remedy


def test_no_weights_at_all(copy: Path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        folder.check(copy, "it")
    assert caught.value.details == ("it has no *.safetensors weights",)


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("vocab_file", "/etc/passwd", True),
        ("vocab_file", "../secret.json", True),
        ("tokenizer_file", "C:\\keys\\tokenizer.json", True),
        ("vocab_file", ".env", True),
        ("merges_file", "merges.txt", False),
        ("vocab_file", "tokenizer.model", False),
        ("vocab_file", None, False),
        ("special_tokens_map_file", "/home/author/special_tokens_map.json", False),
    ],
)
def test_tokenizer_files_stay_inside_the_folder(copy: Path, key: str, value: str | None, refused: bool):
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    if not refused:
        return folder.check(copy, "it")
    with pytest.raises(ModelError) as caught:
        folder.check(copy, "it")
    assert key in caught.value.details[0]


def test_the_fingerprint_follows_the_content_and_not_the_place(copy: Path, tiny_llama: Path):
    assert folder.fingerprint(copy) == folder.fingerprint(tiny_llama)
    first = folder.fingerprint(copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folder.fingerprint(copy) != first


def test_the_fingerprint_is_cached_and_survives_a_broken_cache(copy: Path, monkeypatch: pytest.MonkeyPatch):
    first = folder.fingerprint(copy)
    with monkeypatch.context() as patch:
        patch.setattr(folder.hashlib, "file_digest", None)  # a second hash of the file would fail
        assert folder.fingerprint(copy) == first
    entries = list((folder.cache_root() / "hashes").iterdir())
    assert len(entries) == 2
    for entry in entries:
        entry.write_text("{broken")
    assert folder.fingerprint(copy) == first


def test_a_cache_that_cannot_be_written_costs_time_only(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = folder.fingerprint(copy)
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("LITE_ALIGN_CACHE", str(tmp_path / "file" / "cache"))
    assert folder.fingerprint(copy) == first
