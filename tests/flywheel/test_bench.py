"""One base, adapters that come and go: loaded once, rendered once, and each side as it is alone."""

from typing import Any

import pytest
import torch

from lite_align.data.render import Renderer
from lite_align.errors import UserError
from lite_align.flywheel import bench as benches
from lite_align.flywheel import questions, sides
from lite_align.flywheel.bench import Bench
from lite_align.model.backbone import Backbone, Role
from lite_align.model.load import load_model
from lite_align.stages.speaker import Sampling
from lite_align.train.finished import read_finished
from lite_align.view import View
from tests.flywheel.small import Made

SAMPLED = Sampling(1.0, 1.0, 12, 3)


def bench_of(made: Made, *names: object, sampling: Sampling = SAMPLED) -> tuple[Bench, list[sides.Side]]:
    found = [sides.find(str(name)) for name in names]
    return Bench(sides.common_base(found), found, sampling, View(quiet=True)), found


def said(bench: Bench, side: sides.Side, made: Made) -> list[str]:
    asked = bench.ask(questions.read(str(made.prompts)))
    return [answer.text for answer in bench.answers(bench.put(side), asked, 2)]


def test_every_side_answers_as_it_does_alone_in_whatever_order(made: Made) -> None:
    names = ("base", made.first, made.second)
    alone = {}
    for name in names:
        bench, (side, *_) = bench_of(made, name, made.first)
        alone[name] = said(bench, side, made)
    assert len({tuple(texts) for texts in alone.values()}) == 3
    for order in (names, names[::-1], (made.second, made.first, made.second, "base", made.first)):
        bench, found = bench_of(made, *order)
        assert [said(bench, side, made) for side in found] == [alone[name] for name in order]


def test_the_base_is_loaded_once_and_every_prompt_rendered_once(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, rendered = [], []
    original = Renderer.answers
    monkeypatch.setattr(benches, "load_model", lambda *a, **k: (loads.append(1), load_model(*a, **k))[1])
    monkeypatch.setattr(
        Renderer,
        "answers",
        lambda self, examples, *a, **k: (rendered.extend(examples), original(self, examples, *a, **k))[1],
    )
    bench, found = bench_of(made, "base", made.first, made.second)
    asked = bench.ask(questions.read(str(made.prompts)))
    for side in found:
        bench.answers(bench.put(side), asked, 2)
    assert len(loads) == 1
    assert len(rendered) == len(asked) == 5


def test_the_likeliest_tokens_are_those_of_generate(made: Made) -> None:
    bench, (side,) = bench_of(made, made.first, sampling=Sampling(0.0, 1.0, 12, 3))
    asked = bench.ask(questions.read(str(made.prompts)))
    found = bench.answers(bench.put(side), asked, 1)
    backbone = read_finished(made.first).backbone("cpu")
    expected = backbone.generate(
        [one.ids for one in asked], stop_ids=bench.renderer.stop_ids, max_new_tokens=12
    )
    assert [one.sampled.ids for one in found] == expected
    assert bench.greedy is bench.collector


def test_a_reference_that_was_an_adapter_can_be_the_base_again(made: Made) -> None:
    bench, (first, second) = bench_of(made, made.first, made.second)
    rows = questions.held_out(read_finished(made.first), bench.renderer)
    assert rows.noun == "pairs"
    trees = [tree for _, tree in rows.examples][:4]
    as_base = bench.logps(Role.BASE, trees)
    bench.put(sides.Side("base"), Role.REFERENCE)
    assert bench.logps(Role.REFERENCE, trees) == as_base
    bench.put(second, Role.REFERENCE)
    bench.put(second, Role.POLICY)
    torch.testing.assert_close(bench.logps(Role.REFERENCE, trees), bench.logps(Role.POLICY, trees))
    bench.put(first, Role.POLICY)
    assert bench.logps(Role.REFERENCE, trees) != bench.logps(Role.POLICY, trees)
    bench.put(sides.Side("base"), Role.REFERENCE)
    assert bench.logps(Role.REFERENCE, trees) == as_base


def test_log_probs_are_those_of_the_run_alone(made: Made) -> None:
    bench, (_, second) = bench_of(made, made.first, made.second)
    run = read_finished(made.second)
    examples = questions.held_out(run, bench.renderer).examples
    trees = [tree for _, tree in examples]
    bench.put(sides.find(str(made.first)))
    bench.put(second)
    backbone: Backbone = run.backbone("cpu")
    from lite_align.stages.passes import to_batch

    with torch.no_grad(), backbone.role(Role.POLICY):
        alone = [backbone.leaf_logps(to_batch([tree], backbone.device)).tolist() for tree in trees]
    torch.testing.assert_close(bench.logps(Role.POLICY, trees), alone, atol=1e-4, rtol=1e-5)


def test_answers_that_leave_no_room_are_refused(made: Made) -> None:
    with pytest.raises(UserError, match="leave no room"):
        bench_of(made, made.first, sampling=Sampling(1.0, 1.0, 512, 3))


def test_memory_that_runs_out_is_told(made: Made, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [sides.find(str(made.first))]
    bench = Bench(sides.common_base(found), found, SAMPLED, View())
    original, failed = Backbone.sample, []

    def short(self: Backbone, *args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("out of memory")
        return original(self, *args, **kwargs)

    expected = said(bench, found[0], made)
    monkeypatch.setattr(Backbone, "sample", short)
    assert said(bench, found[0], made) == expected
    assert failed
    assert "Memory ran out" in capsys.readouterr().out
