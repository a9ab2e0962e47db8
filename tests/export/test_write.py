"""Export from end to end: real runs of three kinds of storage, what is refused, and that nothing is left then."""

import dataclasses
import json
import re
import shutil

import pytest
import torch

from lite_align import cli
from lite_align.data.render import Renderer
from lite_align.export import Kind, merge, write
from lite_align.model.load import load_model
from lite_align.recipe import ModelOptions
from lite_align.train.finished import read_finished
from tests import finished
from tests.stages.small import silent


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capsys, *arguments, code=2):
    got = cli.run(["export", *map(str, arguments)])
    error = capsys.readouterr().err
    assert got == code, error
    assert "Traceback" not in error
    assert "not expected" not in error
    assert len(error.splitlines()) >= 2
    return " ".join(error.split())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_merged_is_the_model_of_the_run(tmp_path, tokenizer, tied, quantization, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = finished.model(tmp_path / "base", tokenizer, tied=tied)
    run = finished.run(tmp_path / "run", base, quantization=quantization)
    assert cli.run(["export", str(run), "--to", "merged"]) == 0
    out = capsys.readouterr().out
    target = run / "export" / "merged"
    taken = "the unpacked base" if quantization == "nf4" else "the base"
    assert f"taken merged into {taken} · 20 conversations" in " ".join(out.split())
    assert out.count(" compared ") == (2 if quantization == "nf4" else 1)
    assert listing(run / "export") == ["merged", *(f"merged/{name}" for name in listing(target))]
    assert not list(target.glob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.config.tie_word_embeddings is tied
    assert not hasattr(model.config, "quantization_config")
    backbone = read_finished(run).backbone("cpu")
    prompt = Renderer(AutoTokenizer.from_pretrained(target)).prompt_ids(
        (write.probes.Message("user", "hello world"),)
    )
    ids = torch.tensor([prompt])
    with torch.no_grad():
        expected = backbone.model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)
    card = (target / "README.md").read_text()
    assert f"| {taken} (this export) |" in card
    assert "someone" not in card  # whose machine it was
    assert json.loads((target / "generation_config.json").read_text())["eos_token_id"] == [2, 4]


def test_the_closer_base_is_taken_by_measurement(tmp_path, tokenizer, monkeypatch):
    """Spoil the unpacked weights: then the 16-bit base is closer."""
    base = finished.model(tmp_path / "base", tokenizer)
    run = finished.run(tmp_path / "run", base, quantization="nf4", size=0.01)
    true = merge.unpacked
    monkeypatch.setattr(merge, "unpacked", lambda module: true(module) * 1.5)
    monkeypatch.setattr(write.probes, "MOST_KL", 1.0)
    monkeypatch.setattr(write.probes, "LEAST_SAME_TOP", 0.0)
    target = write.export(run, Kind.MERGED, silent())
    assert "| the base (this export) |" in (target / "README.md").read_text()


def test_the_built_in_model_in_bf16(tmp_path):
    run = finished.run(tmp_path / "run", write.locate("tiny"), quantization="nf4", size=0.02)
    target = write.export(run, Kind.MERGED, silent(), dtype="bfloat16", out=tmp_path / "out")
    row = re.search(r"\| the unpacked base \(this export\) \| (\S+) \|", (target / "README.md").read_text())
    assert row is not None
    assert float(row[1]) < 3e-4
    options = ModelOptions.model_validate({"name": str(target), "quantization": "none", "dtype": "bfloat16"})
    assert load_model(options, device="cpu").model.config.tie_word_embeddings


def test_an_export_that_is_another_model_is_refused_and_deleted(tmp_path, tiny_llama, capsys, monkeypatch):
    run = finished.run(tmp_path / "run", tiny_llama)
    true = merge.updates
    monkeypatch.setattr(
        merge,
        "updates",
        lambda adapter: {k: dataclasses.replace(u, scale=2 * u.scale) for k, u in true(adapter).items()},
    )
    before = listing(run)
    error = refused(capsys, run, "--to", "merged", "--out", tmp_path / "out", code=1)
    assert "LA801" in error
    assert "KL" in error
    assert listing(run) == before
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_adapter_is_copied_with_all_that_it_needs(tmp_path, tiny_llama, capsys):
    run = finished.run(tmp_path / "run", tiny_llama)
    assert cli.run(["export", str(run), "--to", "adapter"]) == 0
    target = run / "export" / "adapter"
    weights = "adapter_model.safetensors"
    assert (target / weights).read_bytes() == (run / "adapters" / "policy" / weights).read_bytes()
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_llama)
    assert {"README.md", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(
        listing(target)
    )
    from peft import AutoPeftModelForCausalLM

    assert AutoPeftModelForCausalLM.from_pretrained(target) is not None


def test_a_reward_adapter_is_exported_as_an_adapter_only(tmp_path, tiny_llama, capsys):
    run = finished.run(tmp_path / "run", tiny_llama)
    (run / "adapters" / "policy").rename(run / "adapters" / "reward")
    (run / "adapters" / "reward" / "head.safetensors").write_bytes(b"head")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "stage": "reward"}))
    for kind in ("merged", "ollama", "gguf"):
        assert "scores answers and writes none" in refused(capsys, run, "--to", kind)
    assert cli.run(["export", str(run), "--to", "adapter"]) == 0
    assert (run / "export" / "adapter" / "head.safetensors").read_bytes() == b"head"


def test_what_cannot_be_exported_is_told(tmp_path, tiny_llama, capsys):
    run = finished.run(tmp_path / "run", tiny_llama)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "not empty" in refused(capsys, run, "--to", "merged", "--out", tmp_path / "full")
    assert "not a run folder" in refused(capsys, tmp_path, "--to", "merged")
    assert "zip" in refused(capsys, run, "--to", "zip")
    unfinished = finished.run(tmp_path / "other", tiny_llama, status="interrupted")
    assert "not finished" in refused(capsys, unfinished, "--to", "adapter")
    shutil.rmtree(run / "adapters")
    assert "no adapter" in refused(capsys, run, "--to", "adapter")
    assert not (run / "export").exists()


def test_a_base_that_changed_is_refused(tmp_path, tokenizer, capsys):
    base = finished.model(tmp_path / "base", tokenizer)
    run = finished.run(tmp_path / "run", base)
    finished.model(base, tokenizer, tied=True)
    assert "weights have changed" in refused(capsys, run, "--to", "adapter")


def test_ollama_gets_the_merged_folder_and_a_modelfile(tmp_path, tiny_llama, capsys):
    run = finished.run(tmp_path / "run", tiny_llama)
    assert cli.run(["export", str(run), "--to", "ollama"]) == 0
    target = run / "export" / "ollama"
    assert {"Modelfile", "model.safetensors", "config.json", "README.md"} <= set(listing(target))
    lines = (target / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ."
    assert lines[-2:] == ['PARAMETER stop "</s>"', 'PARAMETER stop "<|im_end|>"']
    assert "ollama create" in (target / "README.md").read_text()


def test_a_template_that_no_go_template_writes_is_told_before_any_work(tmp_path, capsys):
    from tests.conftest import make_tokenizer

    source = (
        "{% for m in messages %}{{ loop.index }}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}{{ messages | length + 1 }}assistant: {% endif %}"
    )
    run = finished.run(tmp_path / "run", finished.model(tmp_path / "base", make_tokenizer(source)))
    assert "cannot be written as a Go template" in refused(capsys, run, "--to", "ollama")
    assert not (run / "export").exists()
