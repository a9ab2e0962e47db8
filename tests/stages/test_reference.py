"""The reference cache: what it shares, what it does not, and what happens when it is damaged, killed or shared."""

import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_align.data.types import Leaf, Pair, Tree
from lite_align.errors import DiskFull, TrainingStopped, UserError
from lite_align.model.backbone import Backbone, Role
from lite_align.model.folder import cache_root
from lite_align.recipe import load, to_dict
from lite_align.stages import reference, training
from lite_align.stages.dpo import DPO
from lite_align.stages.prepare import prepare
from lite_align.stages.procedure import Prepared
from lite_align.stages.reference import ReferenceCache, fill, tree_digest, verify
from lite_align.train.faults import TokenBudget
from lite_align.train.record import read_record
from lite_align.train.run import Run
from tests.stages import small

ROWS = small.rows(20)
TREE = Tree(0, (1, 2), (False, False), (Leaf((3, 4), (True, True)), Leaf((5,), (True,))))


@pytest.fixture(scope="module")
def model(tiny_llama) -> Backbone:
    return small.backbone(tiny_llama)


@pytest.fixture(scope="module")
def trees(model) -> list[Tree]:
    return small.as_trees(small.as_pairs(ROWS), model.loaded.tokenizer)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Pairs of every forward pass under REFERENCE."""
    seen: list[int] = []
    forward = Backbone.leaf_logps

    def counting(self: Backbone, batch):
        if self.current_role is Role.REFERENCE:
            seen.append(len(batch.keys))
        return forward(self, batch)

    monkeypatch.setattr(Backbone, "leaf_logps", counting)
    return seen


def cache(folder: Path, **identity: str) -> ReferenceCache:
    return ReferenceCache(folder, {"base": "a", **identity})


# The key.


def test_the_digest_is_of_tokens_and_masks_alone():
    same = Tree(7, *[getattr(TREE, name) for name in ("root", "root_trained", "leaves")])
    assert tree_digest(same) == tree_digest(TREE)
    others = [
        Tree(0, (1, 9), (False, False), TREE.leaves),
        Tree(0, (1, 2), (False, True), TREE.leaves),
        Tree(0, (1, 2), (False, False), TREE.leaves[::-1]),
        Tree(0, (1, 2), (False, False), (TREE.leaves[0], Leaf((5,), (False,)))),
        Tree(0, (1,), (False,), (Leaf((2, 3, 4), (False, True, True)), Leaf((2, 5), (False, True)))),
    ]
    assert len({tree_digest(tree) for tree in [TREE, *others]}) == 6


def test_the_digest_of_a_forest_depends_on_rows_and_order():
    other = Tree(0, (1, 9), (False, False), TREE.leaves)
    digests = {reference.forest_digest(trees) for trees in ([TREE, other], [other, TREE], [TREE])}
    assert len(digests) == 3


def test_values_come_back_exactly_and_identities_do_not_mix(tmp_path):
    values = {b"a" * 32: (-1.5, float(torch.tensor(-2 / 3))), b"b" * 32: (-0.25,)}
    cache(tmp_path).store(values)
    wanted = [*values, b"c" * 32]
    assert cache(tmp_path).lookup(wanted) == values
    assert cache(tmp_path, dtype="bfloat16").lookup(wanted) == {}
    assert cache(tmp_path).lookup([]) == {}


def test_more_digests_than_one_query_takes(tmp_path):
    values = {bytes([n % 256, n // 256]) * 16: (float(n),) for n in range(1203)}
    held = cache(tmp_path)
    held.store(values)
    assert held.lookup(list(values)) == values


# What is computed, counted in forward passes under REFERENCE.


def prepared_run(tiny: Path, data: Path, out: Path, sets: Sequence[str] = ()) -> tuple[Prepared[Pair], DPO]:
    """A run up to its first step, through the pieces of the command."""
    sets = ["train.batch_size=4", "data.held_out=0.2", "model.dtype=float32", *sets]
    if not any(text.startswith("train.tokens_per_microbatch") for text in sets):
        sets.append("train.tokens_per_microbatch=512")
    resolved = load("dpo", data=str(data), flags={"model.name": str(tiny)}, sets=sets)
    procedure = training.PROCEDURES["dpo"]
    prepared = prepare(procedure, resolved, None, small.silent())
    recipe = to_dict(prepared.resolved.recipe)
    with Run.create(stage="dpo", recipe=recipe, out=out) as run:
        backbone = training.load_backbone(procedure, prepared, run, small.silent())
        stage, _ = training.build(procedure, backbone, prepared, run, small.silent())
        stage.prove_start()
    return prepared, stage


def test_a_sweep_computes_the_reference_once_and_new_rows_alone(tiny_llama, tmp_path, counted):
    data = small.write(tmp_path / "rows.jsonl", ROWS)

    def misses(name: str, *sets: str, model: Path = tiny_llama, rows: Path = data) -> int:
        counted.clear()
        prepared, _ = prepared_run(model, rows, tmp_path / name, sets)
        pairs = len(prepared.train) + len(prepared.held_out)
        return sum(counted) - min(reference.CHECKED_ROWS, pairs)

    assert misses("first") == 20
    for number, setting in enumerate(
        [
            "loss.beta=0.5",
            "train.learning_rate=0.01",
            "train.epochs=3.0",
            "lora.rank=4",
            "train.seed=7",
            "loss.name=ipo",
            "train.tokens_per_microbatch=64",
        ]
    ):
        assert misses(f"sweep-{number}", setting) == 0, setting
    more = small.write(tmp_path / "more.jsonl", [*ROWS, *small.rows(30)[20:]])
    assert misses("more", rows=more) == 10
    assert misses("again", rows=more) == 0
    assert misses("nf4", "model.quantization=nf4") == 20
    other = tmp_path / "other-model"
    shutil.copytree(tiny_llama, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert misses("other", model=other) == 20
    assert misses("apart", "speed.share_prompts=false") == 20
    assert misses("apart again", "speed.share_prompts=false", "loss.beta=0.5") == 0


def test_shortcuts_that_are_off_are_off_in_every_pass(tiny_llama, tmp_path, monkeypatch):
    data = small.write(tmp_path / "rows.jsonl", ROWS)
    forward, shared, fused = Backbone.leaf_logps, [], []
    monkeypatch.setattr(training, "Engine", lambda *_, **options: fused.append(options["fused"]))

    def counting(self: Backbone, batch):
        shared.append(sum(segment.shared_stop - segment.shared_start for segment in batch.segments))
        return forward(self, batch)

    monkeypatch.setattr(Backbone, "leaf_logps", counting)
    found = []
    for share in ("true", "false"):
        shared.clear()
        sets = [f"speed.share_prompts={share}", f"speed.fused_optimizer={share}", "loss.sft_weight=0"]
        prepared, stage = prepared_run(tiny_llama, data, tmp_path / share, sets)
        stage.loss(stage.window(0).batches[0])
        evaluated = stage.evaluate()
        assert all(shared) if share == "true" else not any(shared)
        record = read_record(tmp_path / share)
        found.append(
            (prepared.hashes["tokens"], stage.train.reference, evaluated, record["reference"]["kernel"])
        )
    (tokens, values, evaluated, kernel), (tokens_apart, values_apart, evaluated_apart, kernel_apart) = found
    assert tokens_apart == tokens, "a run can be resumed with the other layout"
    torch.testing.assert_close(values_apart, values, rtol=1e-5, atol=1e-4)
    assert evaluated_apart == pytest.approx(evaluated, rel=1e-4, abs=1e-4)
    assert kernel_apart != kernel
    assert fused == [True, False]


def test_equal_trees_are_computed_once(model, trees, tmp_path, counted):
    values, hits = fill(
        model, [*trees[:3], trees[0]], cache(tmp_path), budget=TokenBudget(1), view=small.silent()
    )
    assert (hits, counted) == (0, [1, 1, 1])
    assert values[3] == values[0]
    _, hits = fill(model, [*trees[:3], trees[0]], cache(tmp_path), budget=TokenBudget(1), view=small.silent())
    assert hits == 4


def test_passes_keep_to_the_budget(model, trees, tmp_path, monkeypatch):
    compute, passes = reference.compute, []

    def noting(backbone: Backbone, pack: Sequence[Tree]):
        passes.append([tree.tokens for tree in pack])
        return compute(backbone, pack)

    monkeypatch.setattr(reference, "compute", noting)
    fill(model, trees, cache(tmp_path), budget=TokenBudget(200), view=small.silent())
    assert 1 < len(passes) < len(trees)
    assert all(sum(pack) <= 200 or len(pack) == 1 for pack in passes)


def test_the_values_are_those_of_the_base_whatever_the_policy_is(model, trees, tmp_path):
    expected, _ = fill(model, trees, cache(tmp_path / "a"), budget=TokenBudget(300), view=small.silent())
    before = model.adapter_tensors(Role.POLICY)
    moved = {name: value + 0.1 for name, value in before.items()}
    model.set_adapter_tensors(Role.POLICY, moved)
    try:
        with model.role(Role.POLICY):
            values, _ = fill(
                model, trees, cache(tmp_path / "b"), budget=TokenBudget(300), view=small.silent()
            )
    finally:
        model.set_adapter_tensors(Role.POLICY, before)
    assert values == expected
    assert all(len(row) == 2 for row in values)


# Verification.


@pytest.mark.parametrize("poison", [0.05, -3.0, float("nan")])
def test_a_poisoned_value_is_caught(model, trees, tmp_path, poison):
    held = cache(tmp_path)
    few = trees[: reference.CHECKED_ROWS]
    values, _ = fill(model, few, held, budget=TokenBudget(300), view=small.silent())
    assert verify(model, few, values, seed=1, budget=TokenBudget(300)) < 1e-4
    chosen, rejected = values[5]
    held.store({tree_digest(few[5]): (chosen + poison, rejected)})
    values, hits = fill(model, few, held, budget=TokenBudget(300), view=small.silent())
    assert hits == len(few)
    with pytest.raises(TrainingStopped, match="away from the live reference") as stopped:
        verify(model, few, values, seed=1, budget=TokenBudget(300))
    assert str(cache_root() / "reference") in stopped.value.remedy


def test_of_many_rows_eight_are_checked_and_the_seed_chooses(model, trees, counted):
    values = [reference.compute(model, [tree])[0] for tree in trees]
    counted.clear()
    verify(model, trees, values, seed=1, budget=TokenBudget(300))
    assert counted == [1] * 8
    wrong = [(chosen + 1.0, rejected) for chosen, rejected in values[:1]] + values[1:]
    caught = 0
    for seed in range(12):
        try:
            verify(model, trees, wrong, seed=seed, budget=TokenBudget(300))
        except TrainingStopped:
            caught += 1
    assert 0 < caught < 12


def test_the_tolerance_grows_with_the_root_of_the_length():
    assert reference.tolerance(torch.float32, 100) == pytest.approx(
        10 * reference.tolerance(torch.float32, 1)
    )
    assert reference.tolerance(torch.float32, 0) == reference.tolerance(torch.float32, 1)
    assert reference.tolerance(torch.bfloat16, 1) > reference.tolerance(torch.float32, 1)


# Damage.


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def text(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 400)


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE leaf_logps (something TEXT)")


def half_a_number(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE leaf_logps SET logps = x'0102030405'")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [torn, text, foreign, half_a_number, a_folder])
def test_a_damaged_file_is_an_error_for_people(tmp_path, damage):
    held = cache(tmp_path)
    digests = [struct.pack("<i", n) * 8 for n in range(500)]
    held.store(dict.fromkeys(digests, (-1.0, -2.0)))
    damage(held.path)
    with pytest.raises(UserError) as caught:
        cache(tmp_path).lookup(digests)
    assert str(held.path) in caught.value.what
    assert "LITE_ALIGN_CACHE" in caught.value.remedy


def test_a_cache_folder_that_cannot_be_made_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be used"):
        cache(tmp_path / "file" / "reference")


def overfill(held: ReferenceCache) -> None:
    with held._open() as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")
        rows = [(bytes([n]) * 32, b"0" * 4000) for n in range(99)]
        database.executemany("INSERT INTO leaf_logps VALUES (?, ?)", rows)


def test_a_full_disk_is_told_as_one(tmp_path):
    held = cache(tmp_path)
    with pytest.raises(DiskFull):
        overfill(held)


# Killed, and two at once.


def test_a_killed_pass_goes_on_with_the_same_bits(model, trees, tmp_path, monkeypatch):
    twice = [*trees, trees[4]]  # the same tree in two places must not change how packs are made
    through, _ = fill(model, twice, cache(tmp_path / "through"), budget=TokenBudget(150), view=small.silent())
    compute, calls = reference.compute, 0

    def killed(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(reference, "compute", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(model, twice, cache(tmp_path / "killed"), budget=TokenBudget(150), view=small.silent())
    values, hits = fill(
        model, twice, cache(tmp_path / "killed"), budget=TokenBudget(150), view=small.silent()
    )
    assert 0 < hits < len(trees)
    assert values == through


FILLING = """
import sys
from pathlib import Path
from lite_align.train.faults import TokenBudget
from tests.stages import small
from lite_align.stages.reference import ReferenceCache, fill
model = small.backbone(Path(sys.argv[1]))
trees = small.as_trees(small.as_pairs(small.rows(20)), model.loaded.tokenizer)
cache = ReferenceCache(Path(sys.argv[2]), {"base": "a"})
print("ready", flush=True)
sys.stdin.readline()
values, _ = fill(model, trees, cache, budget=TokenBudget(1), view=small.silent())
print(repr(values))
"""


@pytest.mark.slow
def test_two_processes_fill_one_cache_at_once(model, trees, tiny_llama, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FILLING, str(tiny_llama), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        started = time.monotonic()
        ours, _ = fill(model, trees, cache(tmp_path), budget=TokenBudget(1), view=small.silent())
        theirs = other.stdout.read()
        assert other.wait(60) == 0, time.monotonic() - started
    assert theirs.strip() == repr(ours)
    assert fill(model, trees, cache(tmp_path), budget=TokenBudget(1), view=small.silent()) == (ours, 20)
