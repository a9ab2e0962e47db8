"""Better, worse, or no evidence either way: what a run says about itself, in plain words."""

from collections.abc import Callable
from pathlib import Path

from lite_align.evaluate import imitation, policy, preference, reward
from lite_align.evaluate.findings import Verdict
from lite_align.evaluate.folder import RunFolder, read

JUDGES: dict[str, Callable[[RunFolder], Verdict]] = {
    "sft": imitation.judge,
    "reward": reward.judge,
    "dpo": preference.judge,
    "ppo": policy.judge,
}
"""Who fills the verdict, by stage of the run."""


def judge(run_dir: Path) -> Verdict:
    """The verdict on a run folder. Raises UserError if the folder cannot be read."""
    return judge_folder(read(run_dir))


def judge_folder(folder: RunFolder) -> Verdict:
    """The verdict on a run folder that was read already."""
    return JUDGES.get(str(folder.run.get("stage")), preference.judge)(folder)
