"""What is missing is told before torch is imported, in the words of the stage; what is there is handed on."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lite_align.cli import run

REWARDS = """
def mark(answer):
    return 1.0

better = mark
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: prompts, a reward function, a run that is not finished, a folder in use, a pipeline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    (tmp_path / "score.py").write_text(REWARDS)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text(
        json.dumps({"schema": 1, "status": "interrupted", "stage": "sft"})
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "all.yaml").write_text(
        "stages:\n  sft: {data: {path: prompts.jsonl}}\n  dpo: {from: sft, data: {path: pears.jsonl}}\n"
    )
    return tmp_path


MISTAKES = {
    "dpo prompt.jsonl": "there is no such file or folder",
    "dpo full": "the folder holds no data files",
    "dpo prompts.jsonl --set data.held_out_path=held.jsonl": "held.jsonl: there is no such file",
    "dpo prompts.jsonl --from nowhere": "nowhere does not exist, so nothing can continue it",
    "dpo prompts.jsonl --from begun": "begun is not finished (status: interrupted)",
    "dpo prompts.jsonl --out full": "The output folder full is already in use",
    "ppo prompts.jsonl": "ppo has no reward",
    "ppo prompts.jsonl --reward nowhere": "nowhere is not a run folder",
    "ppo prompts.jsonl --reward begun": "begun is not finished",
    "ppo prompts.jsonl --reward-fn sore.py:mark": "Did you mean score.py:mark?",
    "ppo prompts.jsonl --reward-fn score.py:marks": "score.py has no marks; its functions are: mark",
    "ppo prompts.jsonl --set ppo.rules.repetitions=1": "repetition",
    "run all.yaml": "pears.jsonl: there is no such file",
}


def test_mistakes_are_told_before_torch_is_imported(folder: Path):
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stderr\n"
        "from lite_align.cli import run\n"
        "told = {}\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    with redirect_stderr(io.StringIO()) as said:\n"
        "        told[line] = [run(line.split()), ' '.join(said.getvalue().split())]\n"
        "print(json.dumps([told, 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(MISTAKES))], capture_output=True, text=True, check=True
    )
    told, imported = json.loads(done.stdout)
    assert not imported
    for line, words in MISTAKES.items():
        assert told[line][0] == 2, line
        assert words in told[line][1], line


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was handed on to the stages."""
    calls: list[str] = []
    for name, verb in (("training", "train"), ("pipeline", "run")):
        fake = SimpleNamespace(**{verb: lambda *_, name=name: calls.append(name)})
        monkeypatch.setitem(sys.modules, f"lite_align.stages.{name}", fake)
    return calls


@pytest.mark.parametrize(
    "line",
    [
        "dpo prompts.jsonl",
        "dpo owner/name",  # of the hub, which is asked by the stage
        "dpo prompts.jsonl --out full --dry-run",
        "dpo gone.jsonl --out begun --resume --from nowhere",
        "ppo prompts.jsonl --reward-fn score.py:mark",
        "ppo prompts.jsonl --reward-fn score.py:better",  # no plain definition: the file is run
    ],
)
def test_what_is_there_is_handed_on(folder: Path, trained: list[str], line: str):
    assert run(line.split()) == 0
    assert trained == ["training"]


def test_stages_that_can_start_are_handed_on(folder: Path, trained: list[str]):
    (folder / "pears.jsonl").write_text('{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n')
    assert run(["run", "all.yaml"]) == 0
    assert trained == ["pipeline"]


def test_a_function_that_is_plainly_there_is_not_run_twice(folder: Path, trained: list[str]):
    (folder / "score.py").write_text(f"open('ran', 'a').write('x')\n{REWARDS}")
    assert run("ppo prompts.jsonl --reward-fn score.py:mark".split()) == 0
    assert not (folder / "ran").exists()
    assert run("ppo prompts.jsonl --reward-fn score.py:better".split()) == 0
    assert (folder / "ran").read_text() == "x"
