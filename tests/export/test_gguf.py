"""GGUF: where the converter is looked for, how it is called, and what it may do wrong."""

import importlib.util
import os
import re

import pytest

from lite_align import cli
from lite_align.errors import LiteAlignError, UserError
from lite_align.export import gguf
from tests import finished
from tests.stages.small import silent

ARGUMENTS = """
import json, sys
from pathlib import Path
folder, out = Path(sys.argv[1]), Path(sys.argv[3])
assert sys.argv[2] == "--outfile" and sys.argv[4:] == ["--outtype", "f32"], sys.argv
config = json.loads((folder / "config.json").read_text())
assert config["dtype"] == "float32" and "quantization_config" not in config
from safetensors.torch import load_file
weights = load_file(folder / "model.safetensors")
assert (folder / "tokenizer.json").exists()
"""
PLAIN = ARGUMENTS + 'out.write_bytes(b"GGUF" + len(weights).to_bytes(4, "little"))\n'
REAL = (
    ARGUMENTS
    + """
import gguf
writer = gguf.GGUFWriter(out, "llama")
writer.add_block_count(config["num_hidden_layers"])
for name, value in weights.items():
    writer.add_tensor(name, value.numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
)
HAS_GGUF = importlib.util.find_spec("gguf") is not None


@pytest.fixture
def converter(tmp_path, monkeypatch):
    def make(source: str):
        folder = tmp_path / "llama.cpp"
        folder.mkdir(exist_ok=True)
        (folder / gguf.SCRIPT).write_text(source)
        (folder / gguf.SCRIPT).chmod(0o755)
        monkeypatch.setenv(gguf.VARIABLE, str(folder))
        return folder / gguf.SCRIPT

    return make


def test_the_converter_is_found_by_variable_or_path(converter, monkeypatch):
    script = converter(PLAIN)
    assert gguf.find_converter() == script
    monkeypatch.setenv(gguf.VARIABLE, str(script))
    assert gguf.find_converter() == script
    monkeypatch.delenv(gguf.VARIABLE)
    monkeypatch.setenv("PATH", str(script.parent) + os.pathsep + os.environ["PATH"])
    assert gguf.find_converter() == script
    monkeypatch.setenv(gguf.VARIABLE, "/no/such")
    with pytest.raises(UserError, match="LLAMA_CPP=/no/such leads to no"):
        gguf.find_converter()


def test_without_a_converter_the_commands_are_told_and_nothing_is_written(
    tmp_path, tiny_llama, monkeypatch, capsys
):
    monkeypatch.delenv(gguf.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    run = finished.run(tmp_path / "run", tiny_llama)
    assert cli.run(["export", str(run), "--to", "gguf"]) == 2
    error = capsys.readouterr().err
    assert "git clone" in error
    assert "pip install gguf" in error
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    "source", [PLAIN, pytest.param(REAL, marks=pytest.mark.skipif(not HAS_GGUF, reason="gguf"))]
)
def test_the_merged_folder_is_converted_and_only_the_file_and_its_card_stay(
    tmp_path, tiny_llama, converter, source, capsys
):
    converter(source)
    run = finished.run(tmp_path / "run", tiny_llama)
    assert cli.run(["export", str(run), "--to", "gguf"]) == 0
    target = run / "export" / "gguf"
    assert sorted(file.name for file in target.iterdir()) == ["README.md", "model.gguf"]
    assert re.search(r"converted in \d+:\d\d", " ".join(capsys.readouterr().out.split()))
    if source is REAL:
        reader = importlib.import_module("gguf").GGUFReader(target / "model.gguf")
        assert len(reader.tensors) == 21
    else:
        assert (target / "model.gguf").read_bytes() == b"GGUF" + (21).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit('no such architecture')", "ended with code 1"),
        ("", "wrote no file"),
        ("import sys; open(sys.argv[3], 'w').write('text')", "is no GGUF"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(tmp_path, tiny_llama, converter, source, reason, capsys):
    converter(source)
    run = finished.run(tmp_path / "run", tiny_llama)
    assert cli.run(["export", str(run), "--to", "gguf"]) == 1
    error = capsys.readouterr().err
    assert reason in " ".join(error.split())
    assert ("no such architecture" in error) is ("architecture" in source)
    assert not (run / "export").exists()


def test_convert_tells_what_failed(tmp_path, converter):
    with pytest.raises(LiteAlignError, match="ended with code 3"):
        gguf.convert(converter("raise SystemExit(3)"), tmp_path, tmp_path / "out", "float32", silent())
