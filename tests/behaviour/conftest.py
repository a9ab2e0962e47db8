"""A small real DPO run through the whole pipeline, and everything of it that must be equal bit by bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.stages import small, small_ppo

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "100"}
SPEEDS = ("examples_per_second", "tokens_per_second")
PAIRS, HELD_OUT, BATCH = 13, 3, 4  # 10 trained pairs: three steps an epoch, the last of them smaller


def write_pairs(path: Path, count: int = PAIRS) -> Path:
    """Preference rows with long and short answers, one prompt each."""
    words = "the quick brown fox asks a question and the lazy dog answers".split()
    rows = [
        {
            "prompt": f"Question {n}: what does the {words[n % 12]} say to the {words[(n + 5) % 12]}?",
            "chosen": " ".join(words[n % 5 : n % 5 + 3 + n % 4]),
            "rejected": " ".join(reversed(words[: 2 + n % 6])),
            "category": ("facts", "manners")[n % 2],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(**changes: object) -> dict[str, object]:
    """Recipe settings of the small run by dotted key (`train__seed` stands for `train.seed`)."""
    base: dict[str, object] = {
        "model.quantization": "none",
        "model.dtype": "float32",
        "model.gradient_checkpointing": "off",
        "speed.compile": "off",
        "data.held_out": HELD_OUT / PAIRS,
        "lora.rank": 4,
        "train.learning_rate": 1e-2,
        "train.epochs": 2.0,
        "train.batch_size": BATCH,
        "train.tokens_per_microbatch": 160,
        "train.save_steps": 2,
        "train.eval_steps": 3,
        "train.log_steps": 2,
    }
    return base | {key.replace("__", "."): value for key, value in changes.items()}


@dataclass(frozen=True)
class Job:
    """One command line of a training verb, as the stage gets it."""

    data: Path
    model: Path
    out: Path
    recipe: dict[str, object]
    stage: str = "dpo"

    def changed(self, **changes: object) -> "Job":
        """The same job with other settings."""
        return replace(self, recipe=self.recipe | {k.replace("__", "."): v for k, v in changes.items()})

    def train(self, *, resume: bool = False, accept: tuple[str, ...] = ()) -> Path:
        """Run the stage in this process and return the run folder."""
        from lite_align.recipe import load
        from lite_align.stages.command import CommandOptions
        from lite_align.stages.training import train
        from lite_align.view import View

        flags = {"model.name": str(self.model), **self.recipe}
        resolved = load(self.stage, data=str(self.data), flags=flags)
        folder = train(resolved, CommandOptions(self.out, resume, accept), View(quiet=True))
        assert folder is not None
        return folder

    def arguments(self, *more: str) -> list[str]:
        """The same as a command line."""
        sets = [f"--set={key}={value}" for key, value in self.recipe.items()]
        return [self.stage, str(self.data), "--model", str(self.model), "--out", str(self.out), *sets, *more]

    def metrics(self) -> list[dict[str, float]]:
        """Rows of metrics.jsonl without speeds."""
        rows = map(json.loads, (self.out / "metrics.jsonl").read_text().splitlines())
        return [
            {k: v for k, v in row.items() if k not in SPEEDS and not k.startswith("speed/")} for row in rows
        ]

    def tensors(self) -> dict[str, Tensor]:
        """All saved adapters and heads, and all that the newest checkpoint holds: moments, random states, …"""
        newest = max((self.out / "checkpoints").glob("step-*"))
        adapters = (self.out / "adapters").glob("*/*.safetensors")
        return {
            **{f"{file.parent.name} {k}": v for file in adapters for k, v in load_file(file).items()},
            **{
                f"{newest.name} {file.stem} {k}": v
                for file in newest.glob("*.safetensors")
                for k, v in load_file(file).items()
            },
        }

    def measured(self) -> dict[str, bytes]:
        """What was measured on held-out rows, by file."""
        found = {path.name: path.read_bytes() for path in self.out.glob("*.jsonl")}
        del found["metrics.jsonl"]
        assert "held_out.jsonl" in found
        return found

    def record(self) -> dict[str, Any]:
        """What run.json holds."""
        return json.loads((self.out / "run.json").read_text())

    def assert_equals(self, other: "Job") -> None:
        """Both runs are finished and left the same, bit by bit, but for speeds and times."""
        ours, theirs = self.tensors(), other.tensors()
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not bool((ours[name] == theirs[name]).all())] == []
        assert self.metrics() == other.metrics()
        assert self.measured() == other.measured()
        for section in ("data", "plan", "hashes", "reference", "adapters", "reward", "ppo", "verdict"):
            assert self.record().get(section) == other.record().get(section), section
        assert self.record()["status"] == other.record()["status"] == "finished"
        assert (self.out / "report.html").is_file()


@pytest.fixture
def few_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short answers in place of eight long ones: what is said matters, not how much."""
    from lite_align.stages import answers, reload

    # A reward model is loaded again in this process: starting one more takes seconds each time.
    monkeypatch.setattr(reload, "fresh", lambda *_: None)
    monkeypatch.setattr(answers, "PROBES", 2)
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


@pytest.fixture
def job(tmp_path: Path, tiny_llama: Path, few_answers: None) -> Iterator[Callable[..., Job]]:
    """Make a job that writes into a folder of this test; one thread, as in the child processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = write_pairs(tmp_path / "pairs.jsonl")

    def make(name: str = "run", **changes: object) -> Job:
        return Job(data, tiny_llama, tmp_path / name, settings(**changes))

    yield make
    torch.set_num_threads(threads)


PPO_SETTINGS = {
    "data.held_out": 0.3,
    "data.max_length": 256,
    "ppo.rollouts": 8,
    "ppo.max_new_tokens": 10,
    "ppo.update_kl": 100.0,
    "train.learning_rate": 2e-3,
    "train.batch_size": 4,
    "train.tokens_per_microbatch": 160,
    "train.max_steps": 12,  # three rounds of two passes of two minibatches
    "train.save_steps": 4,
    "train.eval_steps": 4,
    "train.log_steps": 4,
}
REWARD_FUNCTION = "def letters(answer):\n    return answer.count('e') / 4 - len(answer) / 40\n"


@pytest.fixture(scope="session")
def talkative(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose answers end."""
    return small_ppo.talkative(tiny_llama, tmp_path_factory.mktemp("models") / "talkative")


@pytest.fixture(scope="session")
def reward_run(talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished reward run on that base, with five pairs held out."""
    folder = tmp_path_factory.mktemp("reward")
    pairs = small.write(folder / "pairs.jsonl", small.rows(10))
    return small_ppo.reward_run(folder / "run", talkative, data={"path": str(pairs), "held_out": 0.5})


@pytest.fixture
def ppo_job(job, tmp_path: Path, talkative: Path) -> Callable[..., Job]:
    """Make a job of PPO on twenty prompts; a reward has to be given, such as the function `letters`."""
    rows = [{"prompt": row["prompt"], "category": row["category"]} for row in small.rows(20)]
    data = small.write(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "own.py").write_text(REWARD_FUNCTION)

    def make(name: str = "run", **changes: object) -> Job:
        recipe = settings(**{key.replace(".", "__"): value for key, value in PPO_SETTINGS.items()})
        return Job(data, talkative, tmp_path / name, recipe, stage="ppo").changed(**changes)

    return make


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """The reward function of a test's own file."""
    return f"{tmp_path / 'own.py'}:letters"


@pytest.fixture
def every_step(job):
    """Make a job that saves at every step."""
    return lambda name: job(name, train__save_steps=1)


@dataclass
class Warm:
    """The warm process (see warm.py); `log` collects what its children print."""

    orders: IO[str]
    answers: IO[str]
    log: Path
    cache: Path
    compiler: frozenset[str]
    """Modules of torch's compiler that a fresh process has loaded before its first command."""

    def start(self, arguments: Sequence[str], **strike: object) -> int:
        """Fork a child for a command line and return its pid."""
        self.log.write_text("")
        order = {"arguments": list(arguments), "log": str(self.log), "cache": str(self.cache), **strike}
        self.orders.write(json.dumps(order) + "\n")
        self.orders.flush()
        return int(self.answers.readline())

    def end(self) -> int:
        """Wait for the child; -9 if it was killed."""
        self.orders.write("wait\n")
        self.orders.flush()
        return int(self.answers.readline())

    def run(self, arguments: Sequence[str], **strike: object) -> int:
        self.start(arguments, **strike)
        return self.end()


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    folder = tmp_path_factory.mktemp("warm")
    environment = os.environ | ENVIRONMENT
    script = Path(__file__).with_name("warm.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=-1, stdout=-1, text=True, env=environment
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        compiler = frozenset(json.loads(server.stdout.readline()))
        yield Warm(server.stdin, server.stdout, folder / "log.txt", folder / "cache", compiler)
        server.stdin.close()


@pytest.fixture
def warm(process: Warm, tmp_path: Path) -> Iterator[Warm]:
    """The warm process with a cache of this test; what its last child said is shown if the test fails."""
    yield replace(process, cache=tmp_path / "cache")
    print(process.log.read_text())
