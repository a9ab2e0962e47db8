"""Write data_samples/: rows of our own world for every stage and one small file for every other data format.

`python -m lite_align.assets.make_samples --out data_samples` writes the same bytes every time. The rows come from
the grammar of `world`, not from a model; preferences are votes of three simulated annotators, so that some of them
are wrong, as with people. What a reward model must score low besides comes from `faults`.
"""

import argparse
import csv
import json
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lite_align.assets import faults, town, world
from lite_align.data.votes import Choice, Comparison, Vote

PAIRS, CHATS, PROMPTS, HELD_OUT_PROMPTS, FORMAT_ROWS = 648, 400, 300, 180, 20
PROBED = {"unsafe": 60, "borderline": 60, "fact": 20, "howto": 20}
REWARD_PROMPTS, VOTED, FAULTY = 480, 2, 2
TEMPERATURES = (0.06, 0.1, 0.2)
# Answers closer than this in score would be labelled by a coin.
CONTRAST = 0.15

Row = dict[str, object]
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Sample:
    """A prompt (a system turn, earlier rounds, the question) with a better and a worse answer."""

    ask: world.Ask
    system: str
    earlier: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str

    @property
    def prompt(self) -> Turns:
        """All turns up to the question, as messages."""
        turns = [message("system", self.system)] if self.system else []
        for question, answer in self.earlier:
            turns += [message("user", question), message("assistant", answer)]
        return [*turns, message("user", self.ask.text)]

    def turned(self) -> "Sample":
        """The same with the answers in each other's place."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)

    def points(self, text: str) -> float:
        """The rule score of an answer as a mark from 1 to 10."""
        return round(1 + 9 * world.score(self.ask, text).total, 1)


def message(role: str, content: str) -> dict[str, str]:
    """One turn as OpenAI writes it."""
    return {"role": role, "content": content}


def turn(sender: str, value: str) -> dict[str, str]:
    """One turn as ShareGPT writes it."""
    return {"from": sender, "value": value}


def sharegpt(turns: Iterable[Mapping[str, str]]) -> Turns:
    """Messages as ShareGPT turns."""
    senders = {"system": "system", "user": "human", "assistant": "gpt"}
    return [turn(senders[one["role"]], one["content"]) for one in turns]


class Questions:
    """Draws questions that were not drawn before, greeting included, going round the categories."""

    def __init__(self, seed: str, *, held_out: bool = False) -> None:
        self.rng = random.Random(seed)
        self._held_out = held_out
        self._seen: set[str] = set()

    def __iter__(self) -> "Questions":
        return self

    def __next__(self) -> world.Ask:
        category = town.CATEGORIES[len(self._seen) % len(town.CATEGORIES)]
        while True:
            ask = world.draw(self.rng, category, held_out=self._held_out)
            if ask.text not in self._seen:
                self._seen.add(ask.text)
                return ask


def setting(rng: random.Random, *, system: float, earlier: float) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A random system turn ("" for none) and, with probability `earlier`, one careful round before the question."""
    turn = rng.choice(list(town.SYSTEM_TURNS)) if rng.random() < system else ""
    if rng.random() >= earlier:
        return turn, ()
    ask = world.draw(rng)
    return turn, ((ask.text, world.respond(rng, ask, world.CAREFUL)),)


def two_answers(rng: random.Random, ask: world.Ask, system: str) -> tuple[str, str]:
    """Two answers in the base style whose scores differ by CONTRAST at least, in random order."""
    profile = world.styled(world.BASE, system or None)
    while True:
        first, second = (world.respond(rng, ask, profile) for _ in range(2))
        if abs(world.score(ask, first).total - world.score(ask, second).total) >= CONTRAST:
            return first, second


def vote(annotators: Sequence[world.Annotator], sample: Sample) -> Sample:
    """The sample with the answer that most annotators prefer as the chosen one."""
    votes = sum(annotator.prefers(sample.ask, sample.chosen, sample.rejected) for annotator in annotators)
    return sample if 2 * votes > len(annotators) else sample.turned()


def annotators() -> list[world.Annotator]:
    """Three people, each with a random state of their own."""
    return [world.Annotator(random.Random(f"annotator {t}"), t) for t in TEMPERATURES]


def pair_row(identifier: str, sample: Sample) -> Row:
    """A pair in the shape pair.chat, with a category and an id."""
    return {
        "id": identifier,
        "category": sample.ask.category,
        "prompt": sample.prompt,
        "chosen": [message("assistant", sample.chosen)],
        "rejected": [message("assistant", sample.rejected)],
    }


def preferences(count: int = PAIRS) -> list[Row]:
    """One pair a prompt; the majority of three annotators chose."""
    questions, people = Questions("preferences"), annotators()
    rows: list[Row] = []
    for number, ask in zip(range(1, count + 1), questions):
        system, earlier = setting(questions.rng, system=0.1, earlier=0.08)
        answers = two_answers(questions.rng, ask, system)
        rows.append(
            pair_row(f"preference-{number:04d}", vote(people, Sample(ask, system, earlier, *answers)))
        )
    return rows


def reward_pairs(count: int = REWARD_PROMPTS) -> list[Row]:
    """Several pairs a prompt: some that annotators compared, and right answers against faulty ones."""
    questions, people = Questions("reward"), annotators()
    rng = questions.rng
    rows: list[Row] = []
    for number, ask in zip(range(1, count + 1), questions):
        system, earlier = setting(rng, system=0.1, earlier=0.08)
        compared = [two_answers(rng, ask, system) for _ in range(VOTED)]
        pairs = [vote(people, Sample(ask, system, earlier, *answers)) for answers in compared]
        right = faults.right_answer(rng, ask, world.styled(world.BASE, system or None))
        wrong: set[str] = set()
        while len(wrong) < FAULTY:
            text = faults.faulty(rng, ask, right, contrast=CONTRAST)
            pairs += [] if text in wrong else [Sample(ask, system, earlier, right, text)]
            wrong.add(text)
        rows += [pair_row(f"reward-{number:04d}-{letter}", pair) for letter, pair in zip("abcdefgh", pairs)]
    return rows


def chats(count: int = CHATS) -> list[Row]:
    """SFT rows in the shape sft.messages: careful answers, some with a system turn, some of two rounds."""
    questions = Questions("sft")
    rows: list[Row] = []
    for number, ask in zip(range(1, count + 1), questions):
        system, earlier = setting(questions.rng, system=0.25, earlier=0.2)
        answer = world.respond(questions.rng, ask, world.CAREFUL)
        turns = [*Sample(ask, system, earlier, "", "").prompt, message("assistant", answer)]
        rows.append({"id": f"sft-{number:04d}", "category": ask.category, "messages": turns})
    return rows


def prompts(count: int, *, held_out: bool) -> list[Row]:
    """Prompts with a category and an id, from one side of the split of the world's questions."""
    name = "held-out" if held_out else "prompt"
    numbered = zip(range(1, count + 1), Questions(name, held_out=held_out))
    return [{"id": f"{name}-{n:04d}", "category": ask.category, "prompt": ask.text} for n, ask in numbered]


def probes(without: Iterable[object]) -> list[Row]:
    """Prompts that no stage has seen and that are not in `without`, marked with what should happen to each."""
    left, known, made = dict(PROBED), set(without), list[Row]()
    for ask in Questions("probes", held_out=True):
        if left.get(ask.category, 0) and ask.text not in known:
            left[ask.category] -= 1
            expect = "refuse" if ask.category == "unsafe" else "answer"
            number = f"probe-{len(made) + 1:04d}"
            made.append({"id": number, "category": ask.category, "prompt": ask.text, "expect": expect})
        if not any(left.values()):
            break
    return made


def samples(seed: str, *, conversations: bool = False) -> list[Sample]:
    """Twenty samples for a format file; the better answer by rule is the chosen one."""
    questions = Questions(seed)
    made = []
    for _, ask in zip(range(FORMAT_ROWS), questions):
        share = 0.4 if conversations else 0.0
        system, earlier = setting(questions.rng, system=share, earlier=share)
        answers = two_answers(questions.rng, ask, system)
        rejected, chosen = sorted(answers, key=lambda text: world.score(ask, text).total)
        made.append(Sample(ask, system, earlier, chosen, rejected))
    return made


def several_answers(sample: Sample) -> list[str]:
    """The two answers of a sample and two more, all different, in random order."""
    rng = random.Random(sample.ask.text)
    answers = [sample.chosen, sample.rejected]
    while len(answers) < 4:
        another = world.respond(rng, sample.ask)
        if another not in answers:
            answers.append(another)
    return rng.sample(answers, 4)


def _human_assistant(sample: Sample, answer: str) -> str:
    rounds = [*sample.earlier, (sample.ask.text, answer)]
    return "".join(f"\n\nHuman: {question}\n\nAssistant: {reply}" for question, reply in rounds)


def _weighted(prompt: Turns, answer: str) -> list[dict[str, object]]:
    """Turns with typed content and a loss weight: only the answer is trained."""
    turns = [*prompt, message("assistant", answer)]
    return [
        {
            "role": turn["role"],
            "content": [{"type": "text", "value": turn["content"]}],
            "loss_weight": float(number == len(turns) - 1),
        }
        for number, turn in enumerate(turns)
    ]


def _ultrafeedback_bin(s: Sample) -> Row:
    question = message("user", s.ask.text)
    chosen, rejected = ([question, message("assistant", text)] for text in (s.chosen, s.rejected))
    return {
        "prompt": s.ask.text,
        "prompt_id": f"{zlib.crc32(s.ask.text.encode()):08x}",
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": s.points(s.chosen),
        "score_rejected": s.points(s.rejected),
    }


def _ultrafeedback_raw(s: Sample) -> Row:
    completions = [{"response": text, "overall_score": s.points(text)} for text in several_answers(s)]
    return {"instruction": s.ask.text, "completions": completions}


def _ranked(s: Sample) -> Row:
    answers = several_answers(s)
    order = sorted(answers, key=s.points, reverse=True)
    return {"prompt": s.ask.text, "answers": [{"answer": a, "rank": order.index(a) + 1} for a in answers]}


def _alpaca_rank(s: Sample) -> Row:
    return {
        "instruction": "Answer the question of a visitor.",
        "input": s.ask.text,
        "system": s.system,
        "history": [list(one) for one in s.earlier],
        "chosen": s.chosen,
        "rejected": s.rejected,
    }


def _openai_pref(s: Sample) -> Row:
    return {
        "input": {"messages": s.prompt},
        "preferred_output": [message("assistant", s.chosen)],
        "non_preferred_output": [message("assistant", s.rejected)],
    }


def _votes(made: Sequence[Sample]) -> list[Row]:
    """Two annotators on ten pairs: they differ on one, ann calls one a tie, and ben sees the other answer first."""
    rows: list[Row] = []
    for number, s in enumerate(made[: FORMAT_ROWS // 2]):
        a, b = (s.chosen, s.rejected) if number % 2 else (s.rejected, s.chosen)
        comparison = Comparison.read({"category": s.ask.category, "prompt": s.prompt, "a": a, "b": b})
        right: Choice = "a" if number % 2 else "b"
        wrong: Choice = "b" if number % 2 else "a"
        ann = Vote(comparison=comparison, choice="tie" if number == 4 else right, annotator="ann", first="a")
        ben = Vote(comparison=comparison, choice=wrong if number == 7 else right, annotator="ben", first="b")
        rows += [ann.record(), ben.record()]
    return rows


# Formats of pairs: one row from one sample.
PAIR_FORMATS: dict[str, Callable[[Sample], Row]] = {
    "pair.chat": lambda s: {
        "prompt": s.prompt,
        "chosen": [message("assistant", s.chosen)],
        "rejected": [message("assistant", s.rejected)],
    },
    "pair.text": lambda s: {"prompt": s.ask.text, "chosen": s.chosen, "rejected": s.rejected},
    "pair.chat-implicit": lambda s: {
        "chosen": [*s.prompt, message("assistant", s.chosen)],
        "rejected": [*s.prompt, message("assistant", s.rejected)],
    },
    "pair.text-implicit": lambda s: {
        "chosen": f"{s.ask.text} {s.chosen}",
        "rejected": f"{s.ask.text} {s.rejected}",
    },
    "hh-rlhf": lambda s: {
        "chosen": _human_assistant(s, s.chosen),
        "rejected": _human_assistant(s, s.rejected),
    },
    "hh-rlhf.prompt": lambda s: {
        "prompt": _human_assistant(s, "").rstrip(),
        "chosen": f" {s.chosen}",
        "rejected": f" {s.rejected}",
    },
    "ultrafeedback-bin": _ultrafeedback_bin,
    "ultrafeedback-raw": _ultrafeedback_raw,
    "argilla": lambda s: {
        "instruction": s.ask.text,
        "chosen_response": s.chosen,
        "rejected_response": s.rejected,
    },
    "orca": lambda s: {
        "system": s.system,
        "question": s.ask.text,
        "chosen": s.chosen,
        "rejected": s.rejected,
    },
    "icr": lambda s: {"input": s.ask.text, "chosen": s.chosen, "rejected": s.rejected},
    "alpaca-rank": _alpaca_rank,
    "sharegpt-rank": lambda s: {
        "conversations": sharegpt(s.prompt),
        "chosen": turn("gpt", s.chosen),
        "rejected": turn("gpt", s.rejected),
    },
    "messages+dict": lambda s: {
        "messages": s.prompt,
        "chosen": message("assistant", s.chosen),
        "rejected": message("assistant", s.rejected),
    },
    "swift": lambda s: {
        "messages": [*s.prompt, message("assistant", s.chosen)],
        "rejected_response": s.rejected,
    },
    "messages-weighted": lambda s: {
        "chosen_messages": _weighted(s.prompt, s.chosen),
        "rejected_messages": _weighted(s.prompt, s.rejected),
    },
    "openai-pref": _openai_pref,
    "ranked": _ranked,
    "stackexchange": lambda s: {"question": s.ask.text, "response_j": s.chosen, "response_k": s.rejected},
}
# Formats of one answer with a thumb up or down: one row from a sample, an answer and its label.
RATED_FORMATS: dict[str, Callable[[Sample, str, bool], Row]] = {
    "kto.text": lambda s, text, good: {"prompt": s.ask.text, "completion": text, "label": good},
    "kto.chat": lambda s, text, good: {
        "prompt": s.prompt,
        "completion": [message("assistant", text)],
        "label": good,
    },
    "kto.chat-only": lambda s, text, good: {
        "conversations": [*sharegpt(s.prompt), turn("gpt", text)],
        "kto_tag": good,
    },
}
# Formats in which several rows make a pair.
VOTE_FORMATS: dict[str, Callable[[Sequence[Sample]], list[Row]]] = {"votes": _votes}
# Formats of conversations to imitate: one row from a sample, whose chosen answer counts.
CHAT_FORMATS: dict[str, Callable[[Sample], Row]] = {
    "sft.messages": lambda s: {"messages": [*s.prompt, message("assistant", s.chosen)]},
    "sft.sharegpt": lambda s: {"conversations": [*sharegpt(s.prompt), turn("gpt", s.chosen)]},
    "sft.alpaca": lambda s: {"instruction": s.ask.text, "input": "", "output": s.chosen},
    "sft.prompt-completion": lambda s: {"prompt": s.ask.text, "completion": s.chosen},
    "sft.qa": lambda s: {"query": s.ask.text, "response": s.chosen, "history": []},
    "sft.text": lambda s: {"text": f"Someone asks: {s.ask.text} Pip says: {s.chosen}"},
}
# Formats of prompts without an answer.
PROMPT_FORMATS: dict[str, Callable[[Sample], Row]] = {
    "prompts": lambda s: {"prompt": s.ask.text},
    "prompts.messages": lambda s: {"messages": s.prompt},
}
# Formats that can hold a system turn and earlier rounds.
CONVERSATIONS = (
    "pair.chat-implicit",
    "hh-rlhf",
    "alpaca-rank",
    "sharegpt-rank",
    "messages+dict",
    "swift",
    "openai-pref",
    "kto.chat",
    "kto.chat-only",
    "sft.sharegpt",
)


def format_rows(name: str) -> list[Row]:
    """The twenty rows of a format file."""
    made = samples(name, conversations=name in CONVERSATIONS)
    if name in VOTE_FORMATS:
        return VOTE_FORMATS[name](made)
    if name in RATED_FORMATS:
        labelled = [
            (s, text, text == s.chosen) for s in made[: FORMAT_ROWS // 2] for text in (s.chosen, s.rejected)
        ]
        return [RATED_FORMATS[name](*one) for one in labelled]
    return [(PAIR_FORMATS | CHAT_FORMATS | PROMPT_FORMATS)[name](one) for one in made]


def as_lines(rows: Iterable[Row]) -> str:
    """Rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path) -> None:
    """Write every file of data_samples/ into a folder."""
    formats = folder / "formats"
    formats.mkdir(parents=True, exist_ok=True)
    files = {
        "preferences.jsonl": preferences(),
        "reward_pairs.jsonl": reward_pairs(),
        "sft.jsonl": chats(),
        "prompts.jsonl": prompts(PROMPTS, held_out=False),
        "held_out_prompts.jsonl": (held_out := prompts(HELD_OUT_PROMPTS, held_out=True)),
        "probes_tiny.jsonl": probes(row["prompt"] for row in held_out),
    }
    for name in (*PAIR_FORMATS, *VOTE_FORMATS, *RATED_FORMATS, *CHAT_FORMATS, *PROMPT_FORMATS):
        files[f"formats/{name}.jsonl"] = format_rows(name)
    for name, rows in files.items():
        (folder / name).write_text(as_lines(rows), encoding="utf-8", newline="\n")
    _write_other_containers(formats)
    (folder / "README.md").write_text(README, encoding="utf-8", newline="\n")


def _write_other_containers(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with (folder / "pair.text.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(format_rows("pair.text"))
    text = json.dumps(format_rows("sharegpt-rank"), ensure_ascii=False, indent=1) + "\n"
    (folder / "sharegpt-rank.json").write_text(text, encoding="utf-8", newline="\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(format_rows("icr")), folder / "icr.parquet")


README = f"""\
# Sample data

Rows of a small world of our own (`lite_align/assets/world.py`): people ask Pip, the helper of a town, about facts,
skills, beliefs, feelings, and sometimes for harmful things. The built-in model `tiny` knows this world.
Everything here is written by `python -m lite_align.assets.make_samples --out data_samples`. Same licence as the code.

- `preferences.jsonl`: {PAIRS} pairs with `category` and `id`, chosen by three simulated annotators (some votes are
  wrong), for `lite-align dpo`.
- `reward_pairs.jsonl`: {VOTED + FAULTY} pairs to each of {REWARD_PROMPTS} prompts, for `lite-align reward`. Annotators
  compared {VOTED}; in the others a right answer stands against one without value (`lite_align/assets/faults.py`): to
  another question, courtesy, praise or fillers alone, halves, repetitions, needless refusals, consent to harm.
- `sft.jsonl`: {CHATS} conversations with careful answers, for supervised fine-tuning.
- `prompts.jsonl`: {PROMPTS} prompts without an answer, for sampling.
- `held_out_prompts.jsonl`: {HELD_OUT_PROMPTS} prompts that no stage has seen, the training of `tiny` included, for
  evaluation.
- `probes_tiny.jsonl`: {sum(PROBED.values())} more of these, marked with what should happen (`expect: refuse` or
  `expect: answer`), for `eval --probes` and `promote --final`.
- `probes.jsonl`: a starter suite in plain English for models that know the world: harmful wishes, harmless ones in
  alarming words, attempts to talk the model over, plain questions. Written by hand; make it your own.
- `formats/`: {FORMAT_ROWS} rows in each format that is detected, named after the format; `pair.text.csv`,
  `sharegpt-rank.json` and `icr.parquet` hold the rows of their `.jsonl` twin in another container.
"""


def main() -> None:
    """Write the samples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data_samples"))
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
