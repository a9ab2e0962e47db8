"""`lite-align sample RUN`: several answers to each prompt, for labels and judges; a stopped command goes on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lite_align.data.types import Message
from lite_align.errors import UserError
from lite_align.flywheel import questions, sides
from lite_align.flywheel.bench import Answer, Bench
from lite_align.flywheel.compare import local
from lite_align.flywheel.judges.reward import RewardJudge
from lite_align.flywheel.replies import turns
from lite_align.flywheel.sides import Side
from lite_align.stages.rollouts import Asked
from lite_align.stages.speaker import Sampling
from lite_align.train import files
from lite_align.train.finished import read_reward
from lite_align.view import View

TOGETHER = 64
"""Prompts whose answers are sampled, and written, together. Their random numbers depend on their place in the file
alone, so a command that was stopped goes on to the same answers."""

REFERENCE = "reference"


@dataclass(frozen=True)
class Options:
    """What is sampled.

    Attributes:
        data: file of prompts.
        samples: answers of each side to each prompt.
        sampling: how they are drawn.
        against: a further side, whose answers stand beside those of the run; "reference": what the run started from.
        reward: reward run that scores the answers.
        best: so many of the best by that score are kept; 0: all.
        out: file of candidates.
        model: name of the base, where nothing says it.
        skip, prompts: the part of the file that is answered: so many prompts from a place on; None: all.
    """

    data: str
    samples: int
    sampling: Sampling
    against: str | None = None
    reward: Path | None = None
    best: int = 0
    out: Path = Path("candidates.jsonl")
    model: str | None = None
    skip: int = 0
    prompts: int | None = None


def sample(name: str, options: Options, view: View) -> None:
    """Sample candidates and append them to a file, prompt by prompt.

    Raises:
        UserError: there is nothing to sample from, or the file was begun with other settings.
    """
    if options.best and options.reward is None:
        raise UserError("--best needs to know what is best.", remedy="Name a reward run with --reward.")
    wanted = [sides.find(name)]
    if options.against is not None:
        other = wanted[0].reference if options.against == REFERENCE else sides.find(options.against)
        wanted.append(other)
    asked = questions.read(options.data).part(options.skip, options.prompts)
    reward = None if options.reward is None else read_reward(options.reward)
    begun = _settings(wanted, asked.sha256, options)
    known = _resumed(options.out, begun)
    if len(known) == len(asked.prompts):
        view.section("saved", f"{options.out}: all {len(known):,} prompts have their answers already")
        return
    bench = Bench(sides.common_base(wanted, options.model), wanted, options.sampling, view)
    judge = None if reward is None else RewardJudge(reward, *local(bench))
    prompts = bench.ask(asked)
    view.section("sample", " and ".join(side.name for side in wanted), asked.told())
    if known:
        view.section("resumed", f"{options.out}: {len(known):,} prompts have their answers already")
    repeated = answered = 0
    with view.bar("answers", len(prompts), "prompts", done=len(known)) as bar:
        for start in range(0, len(prompts), TOGETHER):
            chunk = prompts[start : start + TOGETHER]
            left = [n for n in range(len(chunk)) if start + n not in known]
            if not left:
                continue
            rows = _candidates(bench, wanted, chunk, start, options)
            if judge is not None:
                _score(rows, judge, options.best)
            kept = [rows[n] for n in left]
            with files.explained(options.out):
                files.append(options.out, b"".join(map(files.dump_json, kept)), sync=True)
            repeated += sum(row["repeated"] for row in kept)
            answered += sum(len(row["answers"]) for row in kept)
            bar.advance(len(kept))
    view.section(
        "saved", f"{options.out}: {answered:,} different answers; {repeated:,} said again what stood there"
    )
    view.section("next", f"lite-align label {options.out}", f"lite-align judge {options.out} --by …")


def _settings(wanted: Sequence[Side], data: str, options: Options) -> dict[str, Any]:
    """What the answers depend on."""
    return {
        "sides": [side.facts for side in wanted],
        "data": data,
        "part": [options.skip, options.prompts],
        "samples": options.samples,
        "sampling": asdict(options.sampling),
        "reward": str(options.reward or ""),
        "best": options.best,
    }


def _resumed(out: Path, settings: Mapping[str, Any]) -> set[int]:
    """Numbers of the prompts that have their answers; a torn last line is cut off.

    Raises:
        UserError: the file is there and was begun with other settings.
    """
    record = out.with_name(out.name + ".settings.json")
    if not out.exists():
        with files.explained(record):
            files.replace(record, files.dump_json(settings, indent=1))
        return set()
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        raise UserError(
            f"{out} was begun with other settings ({', '.join(differing)}).", remedy="Give another --out."
        )
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with files.explained(out):
            files.replace(out, whole)
    return {json.loads(line)["number"] for line in whole.splitlines()}


def _candidates(
    bench: Bench, wanted: Sequence[Side], chunk: Sequence[Asked], start: int, options: Options
) -> list[dict[str, Any]]:
    """Rows of candidates: the different answers of all sides to each prompt."""
    said = {
        side.name: bench.answers(bench.put(side), chunk, options.samples, seed=(options.sampling.seed, start))
        for side in wanted
    }
    rows = []
    for n, one in enumerate(chunk):
        own = slice(n * options.samples, (n + 1) * options.samples)
        answers: dict[str, dict[str, Any]] = {}
        for name, found in said.items():
            for number, answer in enumerate(found[own]):
                answers.setdefault(answer.text, _candidate(name, number, answer, options.sampling))
        rows.append(
            {
                "id": one.row.id or f"prompt-{start + n + 1:05}",
                "number": start + n,
                "prompt": turns(one.row.messages),
                "category": one.row.category,
                "answers": list(answers.values()),
                "repeated": len(said) * options.samples - len(answers),
            }
        )
    return rows


def _candidate(name: str, number: int, answer: Answer, sampling: Sampling) -> dict[str, Any]:
    return {
        "text": answer.text,
        "model": name,
        "number": number,
        "temperature": sampling.temperature,
        "logprob": round(answer.logp, 4),
        "tokens": answer.tokens,
        "ended": answer.stopped,
    }


def _score(rows: Sequence[dict[str, Any]], judge: RewardJudge, best: int) -> None:
    """Give every answer its score, the best first, and keep so many."""
    asked = [
        (tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]), answer["text"])
        for row in rows
        for answer in row["answers"]
    ]
    scores = iter(judge.scores(asked))
    for row in rows:
        for answer in row["answers"]:
            score = next(scores)
            answer["reward"] = round(score, 4) if isinstance(score, float) else None
        row["answers"].sort(key=_rank)
        if best:
            row["answers"] = row["answers"][:best]


def _rank(answer: Mapping[str, Any]) -> float:
    """The best first; what has no score last."""
    return math.inf if answer["reward"] is None else -answer["reward"]
