"""The command line: fast help, one form for every mistake, exit codes, and what reaches the stages."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lite_align import __version__, cli
from lite_align.cli import train
from lite_align.errors import DataError, Interrupted, RunInUse
from lite_align.recipe import document, load, stage_of
from lite_align.stages.command import CommandOptions

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "pydantic",
    "rich",
    "scipy",
}


@pytest.fixture
def said(capsys):
    """Run a command and return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def started(monkeypatch):
    """Catch what a training verb hands to its stage."""
    calls = []

    def fake(resolved, command, view):
        calls.append((resolved, command, view))
        return Path("runs/x")

    monkeypatch.setitem(sys.modules, "lite_align.stages.start", SimpleNamespace(train=fake))
    return calls


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, lite_align.cli as c\n"
        "assert c.run(['--help']) == 0\n"
        f"found = {HEAVY} & set(sys.modules)\n"
        "assert not found, found"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    assert "dpo" in done.stdout
    assert min(seconds) < 0.6  # 0.12 s on a free core; the machine that runs the tests may be busy


def test_version_and_module_entry():
    done = subprocess.run(
        [sys.executable, "-m", "lite_align", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"lite-align {__version__}\n"


def test_no_command_shows_help(said):
    assert said()[:2] == said("--help")[:2]


@pytest.mark.parametrize("verb", ["sft", "dpo", "run", "check", "report", "chat", "doctor", "losses", "runs"])
def test_every_verb_has_help_within_100_columns(said, verb):
    code, out, _ = said(verb, "--help")
    assert code == 0
    assert all(len(line) <= 100 for line in out.splitlines())


def test_help_all_is_a_complete_recipe(said, tmp_path):
    code, out, _ = said("dpo", "--help-all")
    assert (code, out) == (0, document("dpo"))
    file = tmp_path / "dpo.yaml"
    file.write_text(out)
    assert stage_of(file) == "dpo"
    assert load("dpo", recipe_file=file)


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["dpq"], ["error  dpq is not a command. Did you mean dpo?"]),
        (["--versio"], ["error  --versio is not an option of lite-align. Did you mean --version?"]),
        (
            ["dpo"],
            [
                "error  DATA is missing.",
                "       lite-align dpo DATA; lite-align dpo --help lists the options.",
            ],
        ),
        (
            ["dpo", "x", "--modle", "y"],
            ["error  --modle is not an option of lite-align dpo. Did you mean --model?"],
        ),
        (
            ["dpo", "x", "--resum=1"],
            ["error  --resum is not an option of lite-align dpo. Did you mean --resume?"],
        ),
        (["check", "x", "--zzz"], ["error  --zzz is not an option of lite-align check."]),
        (
            ["dpo", "x", "--map", "foo"],
            ["error  A column mapping is not right", "       --map foo: FIELD=COLUMN expected"],
        ),
        (
            ["dpo", "x", "--set", "loss.bata=0.3"],
            [
                "error  loss.bata is not a setting of dpo. Did you mean loss.beta?",
                "       lite-align dpo --help-all lists the settings; nothing was written.",
            ],
        ),
        (["dpo", "x", "--set", "a=1", "--set", "b=2"], ["error  2 settings are not right"]),
        (["run", "none.yaml"], ["error  none.yaml does not exist"]),
        (["report", "none"], ["error  none is not a run folder: it has no run.json."]),
        (["chat", "none"], ["error  none is not a run folder"]),
    ],
)
def test_mistakes_of_the_user_are_one_block_and_exit_2(said, arguments, lines):
    code, out, err = said(*arguments)
    assert code == 2
    assert out == ""
    assert err.splitlines()[: len(lines)] == lines
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["dpo", "x", "--seed", "a"], ["dpo", "x", "y"], ["dpo", "x", "--seed"]]
)
def test_other_usage_errors_have_our_form(said, arguments):
    code, _, err = said(*arguments)
    assert code == 2
    assert err.startswith("error  ")
    assert err.endswith("lite-align dpo --help lists the options.\n")


def test_mistakes_are_found_before_torch_is_loaded():
    code = (
        "import sys, lite_align.cli as c\n"
        "assert c.run(['dpo', 'x', '--set', 'loss.bata=1']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dpo_hands_recipe_and_command_to_its_stage(said, started, monkeypatch):
    typed = [
        "dpo",
        "a b.jsonl",
        "--model",
        "tiny",
        "--seed",
        "7",
        "--map",
        "chosen=good",
        "--set",
        "loss.beta=1e-1",
    ]
    typed += ["--out", "o", "--resume", "--accept-drift", "train.epochs", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["lite-align", *typed])
    assert said(*typed)[0] == 0
    ((resolved, command, view),) = started
    recipe = resolved.recipe
    assert (recipe.data.path, recipe.model.name, recipe.train.seed) == ("a b.jsonl", "tiny", 7)
    assert (recipe.data.map, recipe.loss.beta) == ({"chosen": "good"}, 0.1)
    assert resolved.provenance["data.map"] == "--map"
    assert command == CommandOptions(
        Path("o"),
        True,
        ("train.epochs",),
        True,
        shlex.join(["lite-align", *typed]),
    )
    assert not view.quiet


def test_run_takes_stage_and_data_from_the_recipe(said, started, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("stage: dpo\ndata:\n  path: rows.jsonl\n")
    assert said("run", str(file), "--quiet")[0] == 0
    assert said("run", str(file), "other.jsonl", "--json")[0] == 0
    assert [call[0].recipe.data.path for call in started] == ["rows.jsonl", "other.jsonl"]
    assert (started[0][2].quiet, started[1][2].json) == (True, True)
    file.write_text("stage: dpo\n")
    assert "names no data" in said("run", str(file))[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("bad rows"), 2),
        (RunInUse("in use"), 73),
        (Interrupted("stopped", signal_number=15), 143),
        (KeyboardInterrupt(), 130),
        (RuntimeError("boom\nsecond line"), 1),
    ],
)
def test_exit_codes(said, monkeypatch, error, code):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(train, "_train", fail)
    got, _, err = said("dpo", "x")
    assert got == code
    assert "Traceback" not in err
    if code == 1:
        assert err.splitlines()[0] == "error  RuntimeError: boom"
        assert "lite-align dpo … --debug shows the traceback." in err
        assert "Traceback" in said("dpo", "x", "--debug")[2]


def test_json_errors_are_records(said):
    code, out, err = said("dpo", "x", "--json", "--set", "loss.bata=1")
    assert json.loads(out)["exit_code"] == code == 2
    assert err.startswith("error  ")


def test_main_exits_with_the_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lite-align", "dpq"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m lite_align dpo --help-all | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "stage: dpo\n"
    assert done.stderr == ""


def test_losses_and_runs_are_listed(said, tmp_path):
    code, out, _ = said("losses")
    assert code == 0
    assert " sigmoid   " in out
    code, out, _ = said("runs", str(tmp_path))
    assert code == 0
    assert "none in" in out
    assert json.loads(said("runs", str(tmp_path), "--json")[1]) == {"runs": []}
