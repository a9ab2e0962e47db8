"""data_samples/: what the script writes is what is committed, and every row keeps the promises of its README."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lite_align.assets import make_samples, town, world
from lite_align.data import formats, sources

COMMITTED = Path(__file__).parents[2] / "data_samples"
FORMATS = (
    *make_samples.PAIR_FORMATS,
    *make_samples.VOTE_FORMATS,
    *make_samples.RATED_FORMATS,
    *make_samples.CHAT_FORMATS,
    *make_samples.PROMPT_FORMATS,
)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (COMMITTED / name).read_text(encoding="utf-8").splitlines()]


def question(turns: list[dict] | str) -> world.Ask:
    """The question that a prompt ends with."""
    found = world.find(turns if isinstance(turns, str) else turns[-1]["content"])
    assert found is not None
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_samples.write(folder)
    return folder


BY_HAND = "probes.jsonl"
"""The one file that no script writes."""


def files(folder: Path) -> list[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != BY_HAND)


@pytest.mark.parametrize(("name", "refused"), [(BY_HAND, 40), ("probes_tiny.jsonl", 60)])
def test_probes_say_what_should_happen_and_are_enough_for_a_gate(name: str, refused: int):
    probes = rows(name)
    assert len({row["id"] for row in probes}) == len({row["prompt"] for row in probes}) == len(probes)
    wishes = Counter(row["expect"] for row in probes)
    assert wishes["refuse"] == refused
    assert wishes["answer"] >= 20
    assert set(wishes) == {"refuse", "answer"}
    assert {row["expect"] for row in probes if row["category"] == "borderline"} == {"answer"}


def test_probes_of_the_demo_world_are_prompts_that_nothing_else_holds():
    probes = {row["prompt"] for row in rows("probes_tiny.jsonl")}
    assert all(question(prompt).held_out for prompt in probes)
    assert not probes & {row["prompt"] for row in rows("held_out_prompts.jsonl")}


def test_the_same_files_are_written(written):
    assert files(written) == files(COMMITTED)


@pytest.mark.parametrize("name", [name for name in files(COMMITTED) if not name.endswith(".parquet")])
def test_a_file_is_written_with_the_committed_bytes(written, name):
    assert (written / name).read_bytes() == (COMMITTED / name).read_bytes()


def test_the_parquet_file_holds_the_rows_of_its_twin():
    # Not by bytes: the file names the version of the library that wrote it.
    import pyarrow.parquet

    stored = pyarrow.parquet.read_table(COMMITTED / "formats" / "icr.parquet").to_pylist()
    assert stored == rows("formats/icr.jsonl")


def test_the_json_array_holds_the_rows_of_its_twin():
    stored = json.loads((COMMITTED / "formats" / "sharegpt-rank.json").read_text(encoding="utf-8"))
    assert stored == rows("formats/sharegpt-rank.jsonl")


def test_there_are_enough_preferences_of_each_category():
    pairs = rows("preferences.jsonl")
    assert len(pairs) >= 600
    counts = Counter(pair["category"] for pair in pairs)
    assert set(counts) == set(town.CATEGORIES)
    assert min(counts.values()) >= 100


def test_preferences_are_pairs_of_two_answers_to_one_question_each():
    pairs = rows("preferences.jsonl")
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    assert len({pair["prompt"][-1]["content"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert chosen.strip() != rejected.strip()
        assert chosen
        assert rejected
        assert pair["category"] == question(pair["prompt"]).category
        assert not world.unknown_sentences(f"{chosen} {rejected}")


def test_most_but_not_all_votes_follow_the_rule():
    agree = []
    for pair in rows("preferences.jsonl"):
        ask = question(pair["prompt"])
        good, bad = (world.score(ask, pair[side][0]["content"]).total for side in ("chosen", "rejected"))
        agree.append(good > bad)
    assert 0.85 < sum(agree) / len(agree) < 1


def test_preferences_have_some_system_turns_and_some_earlier_rounds():
    roles = [[turn["role"] for turn in pair["prompt"]] for pair in rows("preferences.jsonl")]
    assert 30 < sum(one[0] == "system" for one in roles) < 130
    assert 20 < sum(one.count("user") == 2 for one in roles) < 110


def test_reward_rows_are_several_pairs_of_one_prompt():
    pairs = rows("reward_pairs.jsonl")
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    each = make_samples.VOTED + make_samples.FAULTY
    counts = Counter(json.dumps(pair["prompt"]) for pair in pairs)
    assert set(counts.values()) == {each}
    assert len(counts) == make_samples.REWARD_PROMPTS
    by_category = Counter(pair["category"] for pair in pairs)
    assert by_category == dict.fromkeys(town.CATEGORIES, len(pairs) // len(town.CATEGORIES))


def test_faulty_answers_never_win_and_some_votes_are_wrong():
    voted, faulty = [], []
    for number, pair in enumerate(rows("reward_pairs.jsonl")):
        ask = question(pair["prompt"])
        good, bad = (world.score(ask, pair[side][0]["content"]) for side in ("chosen", "rejected"))
        of_a_vote = number % (make_samples.VOTED + make_samples.FAULTY) < make_samples.VOTED
        (voted if of_a_vote else faulty).append(good.total - bad.total)
        assert of_a_vote or good.correct == 1
    assert 0.85 < sum(gap > 0 for gap in voted) / len(voted) < 1
    assert min(faulty) >= make_samples.CONTRAST - 1e-9


def test_sft_rows_are_right_answers():
    chats = rows("sft.jsonl")
    assert len(chats) == 400
    for chat in chats:
        *prompt, answer = chat["messages"]
        seen = world.score(question(prompt), answer["content"])
        assert (seen.correct, seen.rude, seen.clean) == (1, 0, 1)


def test_no_held_out_question_is_seen_by_a_training_stage():
    trained = [pair["prompt"] for pair in rows("preferences.jsonl")]
    trained += [pair["prompt"] for pair in rows("reward_pairs.jsonl")]
    trained += [chat["messages"][:-1] for chat in rows("sft.jsonl")]
    trained += [[{"role": "user", "content": row["prompt"]}] for row in rows("prompts.jsonl")]
    for turns in trained:
        for turn in turns:
            if turn["role"] == "user":
                assert not question(turn["content"]).held_out
    held_out = rows("held_out_prompts.jsonl")
    assert all(question(row["prompt"]).held_out for row in held_out)
    keys = {question(row["prompt"]).key for row in rows("prompts.jsonl")}
    assert not keys & {question(row["prompt"]).key for row in held_out}
    assert Counter(row["category"] for row in held_out) == dict.fromkeys(town.CATEGORIES, 30)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_file_has_twenty_different_rows(name):
    lines = (COMMITTED / "formats" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 20
    keys = [set(json.loads(line)) for line in lines]
    assert all(one == keys[0] for one in keys)


def test_ranked_rows_put_the_best_answer_first_in_rank():
    for row in rows("formats/ranked.jsonl"):
        ask = question(row["prompt"])
        by_rank = sorted(row["answers"], key=lambda one: one["rank"])
        totals = [world.score(ask, one["answer"]).total for one in by_rank]
        assert totals == sorted(totals, reverse=True)
        assert [one["rank"] for one in by_rank] == [1, 2, 3, 4]
        assert totals[0] > totals[-1]


def test_rated_rows_have_both_labels():
    assert Counter(row["label"] for row in rows("formats/kto.text.jsonl")) == {True: 10, False: 10}


def test_the_shape_of_some_formats_is_as_formats_md_has_it():
    first = {name: rows(f"formats/{name}.jsonl")[0] for name in FORMATS}
    assert set(first["hh-rlhf"]) == {"chosen", "rejected"}
    assert first["hh-rlhf"]["chosen"].startswith("\n\nHuman: ")
    assert "\n\nAssistant: " in first["hh-rlhf"]["chosen"]
    assert set(first["orca"]) == {"system", "question", "chosen", "rejected"}
    assert set(first["sharegpt-rank"]["chosen"]) == {"from", "value"}
    assert set(first["openai-pref"]) == {"input", "preferred_output", "non_preferred_output"}
    assert first["swift"]["messages"][-1]["role"] == "assistant"
    assert first["ultrafeedback-bin"]["score_chosen"] > first["ultrafeedback-bin"]["score_rejected"]
    assert first["ultrafeedback-bin"]["messages"] == first["ultrafeedback-bin"]["chosen"]


def test_every_format_has_a_sample_that_is_detected_as_itself_and_converts():
    known = [entry for entry in formats.FORMATS.values() if entry.kind != "refused"]
    assert {entry.name for entry in known} == set(FORMATS)
    for entry in known:
        table = sources.read(str(COMMITTED.parent / entry.sample))
        detection = formats.detect(table)
        assert (detection.name, detection.share) == (entry.name, 1.0)
        assert formats.convert(table, detection)
