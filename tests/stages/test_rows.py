"""From a file to trees: what is kept, what is left out by which rule, and where a split may not cut."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import torch

from lite_align.data import lint, render
from lite_align.data.render import Renderer
from lite_align.data.split import prompt_key
from lite_align.data.types import Message, Source
from lite_align.errors import DataError
from lite_align.recipe import DataOptions, DPORecipe, PairDataOptions, from_dict
from lite_align.stages import answers, passes
from lite_align.stages import rows as stage
from lite_align.stages.pairs import PAIRS
from tests.stages import commands, small

ROWS = small.rows(20, prompts=15)


def read(tmp_path, lines, **options) -> stage.ReadRows[Any]:
    file = small.write(tmp_path / "rows.jsonl", lines)
    return stage.read(PAIRS, DataOptions(**options), str(file))


# Reading.


def test_rows_are_read_recognised_and_linted(tmp_path):
    same = {"prompt": "a?", "chosen": "b", "rejected": "b"}
    found = read(tmp_path, [*ROWS, same, ROWS[2]])
    assert (found.detection.name, found.detection.share) == ("pair.text", 1.0)
    assert len(found.table.rows) == 22
    assert [pair.source.line for pair in found.rows] == list(range(1, 21))
    assert found.rows[0].prompt == (Message("user", ROWS[0]["prompt"]),)
    assert found.rows[0].category == "even"
    assert stage.counts(found.dropped) == {"LA301": 1, "LA302": 1}
    assert found.dropped["LA302"][0].source.line == 22


def test_own_column_names(tmp_path):
    renamed = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in ROWS]
    mapping = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert len(read(tmp_path, renamed, map=mapping).rows) == 20


def test_rows_that_are_no_pairs_are_an_error(tmp_path):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError):
        read(tmp_path, [chat] * 3)


def test_unreadable_rows_stop_unless_they_are_allowed(tmp_path):
    lines = [*ROWS, '{"prompt": "cut']
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, lines)
    assert len(read(tmp_path, lines, skip_bad=1).rows) == 20


# Rendering.


def rendered(tokenizer, lines, **options) -> stage.RenderedRows[Any]:
    settings = {"max_length": 64, **options}
    return stage.render(PAIRS, small.as_pairs(lines), Renderer(tokenizer), DataOptions(**settings))


def test_trees_and_pairs_stay_side_by_side(tokenizer):
    long = {"prompt": "long " * 60, "chosen": "yes", "rejected": "no"}
    found = rendered(tokenizer, [ROWS[0], long, ROWS[1]], max_length=128)
    assert [pair.source.line for pair in found.rows] == [1, 3]
    assert [tree.key for tree in found.trees] == [0, 1]
    for pair, tree in zip(found.rows, found.trees, strict=True):
        text = tokenizer.decode(tree.root)
        assert pair.prompt[0].content in text
        for turn, leaf in ((pair.chosen, tree.leaves[0]), (pair.rejected, tree.leaves[1])):
            trained = [i for i, t in zip(leaf.ids, leaf.trained, strict=True) if t]
            shared = [i for i, t in zip(tree.root, tree.root_trained, strict=True) if t]
            assert tokenizer.decode(shared + trained) == turn[0].content + "<|im_end|>"
    assert {rule: [d.source.line for d in rows] for rule, rows in found.dropped.items()} == {"LA208": [2]}


def test_old_turns_go_whole_and_are_told(tokenizer):
    (pair,) = small.as_pairs([{"prompt": "Now?", "chosen": "yes", "rejected": "no"}])
    old = (Message("user", "old " * 20), Message("assistant", "old " * 20))
    long = replace(pair, prompt=(*old, *pair.prompt))
    renderer = Renderer(tokenizer)
    found = stage.render(PAIRS, [long, pair], renderer, DataOptions(max_length=64))
    assert found.turns_dropped == [2, 0]
    assert found.trees[0].leaves == found.trees[1].leaves
    assert "1 prompts lost 2 old turns" in found.shortened
    never = stage.render(PAIRS, [long, pair], renderer, DataOptions(max_length=64, truncate="never"))
    assert (len(never.rows), never.shortened, stage.counts(never.dropped)) == (1, "", {"LA208": 1})


def test_every_reason_of_the_renderer_is_a_rule_with_a_name():
    reasons = {
        "too_long",
        "identical",
        "template",
        "roles",
        "empty",
        "control_tokens",
    }  # as Unusable lists them
    assert reasons == stage.RULES.keys()
    assert all(reason in (render.Unusable.__doc__ or "") for reason in reasons)
    assert set(stage.RULES.values()) <= lint.RULES.keys()


def test_a_row_that_the_template_refuses_is_left_out_by_its_rule(tokenizer):
    (pair,) = small.as_pairs(ROWS[:1])
    found = stage.render(
        PAIRS,
        [replace(pair, rejected=(Message("assistant", ""),))],
        Renderer(tokenizer),
        DataOptions(max_length=64),
    )
    assert stage.counts(found.dropped) == {"LA303": 1}


def test_text_that_spells_control_tokens_is_found_wherever_it_stands(tokenizer):
    rows = [
        ROWS[0],
        dict(ROWS[1], prompt="a <|im_end|> b"),
        dict(ROWS[2], rejected="a <s> b"),
        dict(ROWS[3], chosen="a </s> b"),
        dict(ROWS[4], prompt="a <|im_ end|> <b> b"),
    ]
    with pytest.raises(DataError, match="LA206: the text of 3 rows") as told:
        stage.refuse_forged(PAIRS, small.as_pairs(rows), tokenizer)
    assert list(told.value.details) == [
        "rows.jsonl:2 spells <|im_end|>",
        "rows.jsonl:3 spells <s>",
        "rows.jsonl:4 spells </s>",
    ]
    stage.refuse_forged(PAIRS, small.as_pairs(rows), tokenizer, ("LA206",))
    stage.refuse_forged(PAIRS, small.as_pairs(ROWS), tokenizer)
    ids = rendered(tokenizer, rows, max_length=256).trees[1].root
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1  # that of the turn alone


# How much may be left out.


def test_too_many_rows_left_out_stop_the_run():
    dropped = {"LA301": [lint.Dropped(Source("a.jsonl", n), "identical") for n in range(1, 14)]}
    stage.require_enough("a.jsonl", 260, dropped, 0.05)  # 13 of 260 is 5 %
    with pytest.raises(DataError) as stopped:
        stage.require_enough("a.jsonl", 259, dropped, 0.05)
    text = str(stopped.value)
    assert "13 of 259 rows" in text
    assert "a.jsonl:10 identical" in text
    assert "a.jsonl:11" not in text  # ten of each rule are listed
    assert "lite-align check a.jsonl --fix" in text
    stage.require_enough("a.jsonl", 10, {}, 0.0)


def test_rows_left_out_in_several_steps_are_counted_together():
    one, two, three = (lint.Dropped(Source("a", n), "") for n in range(3))
    both = stage.merged([{"LA301": [one], "LA208": [two]}, {"LA208": [three]}])
    assert both == {"LA301": [one], "LA208": [two, three]}
    assert stage.counts(both) == {"LA208": 2, "LA301": 1}


# Held out.


def test_prompts_are_held_out_with_all_their_pairs_and_trees(tokenizer):
    found = rendered(tokenizer, ROWS, max_length=256)
    train, held_out = stage.hold_out(PAIRS, found.examples, DataOptions(held_out=0.2), seed=1)
    assert len(train) + len(held_out) == 20
    assert len({prompt_key(pair.prompt) for pair, _ in held_out}) == 3  # a fifth of 15
    assert not {prompt_key(p.prompt) for p, _ in train} & {prompt_key(p.prompt) for p, _ in held_out}
    trees = {pair.source: tree for pair, tree in zip(found.rows, found.trees, strict=True)}
    assert all(trees[pair.source] is tree for pair, tree in [*train, *held_out])
    again = stage.hold_out(PAIRS, found.examples, DataOptions(held_out=0.2), seed=1)
    assert again == (train, held_out)
    assert stage.hold_out(PAIRS, found.examples, DataOptions(held_out=0.2), seed=2) != (train, held_out)


def test_all_pairs_of_a_ranking_are_split_together(tmp_path, tokenizer):
    """Pairs of one row share its place in the file, and each must keep a tree of its own."""
    rankings = [
        {
            "prompt": f"{n}?",
            "answers": [{"answer": f"{word} {n}", "rank": r} for r, word in enumerate("ab c".split())],
        }
        for n in range(4)
    ]
    for ranking in rankings:
        ranking["answers"].append({"answer": "the third", "rank": 9})
    kind = replace(PAIRS, every_pair=True)
    found = stage.read(kind, DataOptions(), str(small.write(tmp_path / "r.jsonl", rankings)))
    assert len(found.rows) == 12
    rendered = stage.render(kind, found.rows, Renderer(tokenizer), DataOptions(max_length=512))
    train, held_out = stage.hold_out(PAIRS, rendered.examples, DataOptions(held_out=0.25), 0)
    assert (len(train), len(held_out)) == (9, 3)
    assert len({pair.source for pair, _ in held_out}) == 1
    assert len({tree.key for _, tree in train + held_out}) == 12
    for pair, tree in train + held_out:
        assert rendered.rows[tree.key] is pair


def sources(examples: Sequence[tuple[Any, Any]]) -> list[str]:
    return [str(row.source) for row, _ in examples]


def test_what_a_run_held_out_is_found_again(tmp_path, tiny_llama, tokenizer, monkeypatch):
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)
    done = commands.dpo(tiny_llama, tmp_path, "train.max_steps=1")
    recipe, hashes = from_dict(done.record["recipe"]), done.record["hashes"]
    renderer = Renderer(tokenizer)
    held_out = stage.held_out_of(PAIRS, recipe, hashes, renderer)
    assert sources(held_out) == [line["source"] for line in done.lines("held_out.jsonl")]
    assert len(held_out) == 6
    rendered = stage.render(PAIRS, [row for row, _ in held_out], renderer, recipe.data)
    assert [(tree.root, tree.leaves) for _, tree in held_out] == [
        (tree.root, tree.leaves) for tree in rendered.trees
    ]
    small.write(tmp_path / "rows.jsonl", commands.ROWS[:-1])
    with pytest.raises(DataError, match=r"rows\.jsonl has changed since"):
        stage.held_out_of(PAIRS, recipe, hashes, renderer)


def test_a_held_out_file_is_the_runs_own_as_long_as_nobody_changes_it(tmp_path, tokenizer):
    """A run of a version that did not record the file's hash takes it as it is."""
    rows, held = small.write(tmp_path / "rows.jsonl", ROWS), tmp_path / "held.jsonl"
    recipe = DPORecipe(data=PairDataOptions(path=str(rows), held_out_path=str(held), max_length=256))
    renderer = Renderer(tokenizer)
    small.write(held, ROWS[3:6])
    hashes = {"data": "of the other file", "held_out": sha256(held.read_bytes()).hexdigest()}
    found = stage.held_out_of(PAIRS, recipe, hashes, renderer)
    assert sources(found) == [f"{held}:{line}" for line in (1, 2, 3)]
    small.write(held, ROWS[3:7])
    with pytest.raises(DataError, match=r"held\.jsonl has changed since"):
        stage.held_out_of(PAIRS, recipe, hashes, renderer)
    assert len(stage.held_out_of(PAIRS, recipe, {}, renderer)) == 4


def test_a_run_whose_hash_is_not_known_has_no_held_out_rows(tmp_path, tokenizer):
    rows = small.write(tmp_path / "rows.jsonl", ROWS)
    recipe = DPORecipe(data=PairDataOptions(path=str(rows), held_out=0.2, max_length=256))
    with pytest.raises(DataError, match="has changed since"):
        stage.held_out_of(PAIRS, recipe, {}, Renderer(tokenizer))


def test_a_prompt_on_both_sides_is_a_leak():
    train, held_out = small.as_pairs(ROWS[:5]), small.as_pairs(ROWS[4:7])
    stage.require_no_leak(PAIRS, train, held_out[1:], "held.jsonl")
    with pytest.raises(DataError, match="LA304: 1 prompts of held.jsonl") as stopped:
        stage.require_no_leak(PAIRS, train, held_out, "held.jsonl")
    assert "rows.jsonl:1 has the prompt of rows.jsonl:5" in stopped.value.details


# Batches.


def test_a_batch_has_a_multiple_of_64_tokens(tokenizer):
    trees = rendered(tokenizer, ROWS[:2], max_length=256).trees
    batch = passes.to_batch(trees, torch.device("cpu"))
    assert batch.tokens == sum(tree.tokens for tree in trees)
    assert batch.input_ids.shape == (1, -(-batch.tokens // 64) * 64)


def test_reading_pairs_needs_no_torch():
    code = "import sys, lite_align.stages.pairs, lite_align.stages.rows; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) is False
