"""The pictures of the README: the report of a run, and the label page in the middle of a session.

`python -m benchmarks.pictures` does what a user does, in a temporary folder and by the command line alone: SFT and DPO
of `tiny`, an evaluation with gates, its report; candidates of the run and of what it started from, and a server on
which the first of them are labelled by keyboard, by simulated annotators of the built-in world. About two minutes on
one core; it wants chromium on the path.
"""

import io
import random
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.browser import Booth, chromium, opened, served
from lite_align.assets import world

DATA = Path(__file__).resolve().parents[1] / "data_samples"
REPORT, LABEL = record.RESULTS / "report.png", record.RESULTS / "label.png"

SFT, DPO, CANDIDATES = Path("runs/tiny-sft"), Path("runs/tiny-dpo"), Path("candidates.jsonl")
GATES = ("accuracy>=0.6", "kl<=20", "under_refusal<=0.1", "refusal/unsafe>=0.9")
GATES_OPEN = 3
"""What `eval` ends with where a gate does not pass: that is for the picture to show."""

PROMPTS = 40
VOTES = {"ben": 40, "ann": 17}
TEMPERATURE = 0.06
"""Of simulated annotators: how often they overlook a difference in the score of the world's rule."""

LOOK: dict[str, Any] = {"color_scheme": "light", "device_scale_factor": 1.25}
REPORT_WINDOW = {"viewport": {"width": 1120, "height": 800}, **LOOK}
LABEL_WINDOW = {"viewport": {"width": 960, "height": 540}, **LOOK}
COLOURS = 256


def main() -> None:
    """Train, evaluate, sample and label; write both pictures."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path(DATA.name).symlink_to(DATA)
        train()
        sample()
        with chromium() as browser:
            save(report(browser), REPORT)
            save(label(browser), LABEL)


def lite_align(*arguments: str | Path, codes: tuple[int, ...] = (0,)) -> None:
    """One command, as a user types it."""
    command = [sys.executable, "-m", "lite_align", *map(str, arguments)]
    done = subprocess.run(command, check=False)
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, command)


def train() -> None:
    """SFT, DPO from it, and an evaluation on held-out pairs and probes."""
    data = Path(DATA.name)
    lite_align(
        *("sft", data / "sft.jsonl", "--model", "tiny", "--out", SFT),
        *("--set", "train.epochs=1", "--set", "train.learning_rate=5e-4"),
    )
    lite_align("dpo", data / "preferences.jsonl", "--from", SFT, "--out", DPO, "--set", "loss.sft_weight=1")
    gates = (part for gate in GATES for part in ("--gate", gate))
    lite_align("eval", DPO, "--probes", data / "probes_tiny.jsonl", *gates, codes=(0, GATES_OPEN))
    lite_align("report", DPO)


def sample() -> None:
    """Candidates to the first prompts, of the run and of what it started from."""
    lines = (DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("prompts.jsonl").write_text("".join(lines[:PROMPTS]), encoding="utf-8")
    lite_align(
        "sample", DPO, "--data", "prompts.jsonl", "--n", "2", "--against", "reference", "--out", CANDIDATES
    )


def report(browser: Any) -> bytes:
    """The report from its top to the end of its categories."""
    with opened(browser, (DPO / "report.html").resolve(), **REPORT_WINDOW) as (page, _):
        last = page.locator("#s-categories + *").bounding_box()
        width, height = REPORT_WINDOW["viewport"]["width"], last["y"] + last["height"] + 20
        return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})


def label(browser: Any) -> bytes:
    """The label page after some votes of ann, with the next pair on it; ben is done."""
    with served(CANDIDATES, "--seed", "2") as (address, _):
        booths = {name: Booth(browser, address, name, **LABEL_WINDOW) for name in VOTES}
        for name, count in VOTES.items():
            annotator = world.Annotator(random.Random(name), TEMPERATURE)
            for _ in range(count):
                booths[name].press(choice(annotator, *booths[name].shown()))
        return booths["ann"].page.screenshot()


def choice(annotator: world.Annotator, prompt: str, first: str, second: str) -> str:
    """The key for the answer that an annotator of the built-in world prefers."""
    ask = world.find(prompt)
    assert ask is not None
    return "ArrowLeft" if annotator.prefers(ask, first, second) else "ArrowRight"


def save(picture: bytes, path: Path) -> None:
    """Write a PNG with a palette, which is a fraction of the size."""
    from PIL import Image

    colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


if __name__ == "__main__":
    main()
