"""Rubrics and constitutions in YAML: ours can be read, mistakes are told with their lines."""

import pytest

from lite_align.errors import RecipeError
from lite_align.flywheel.rubrics import Constitution, Rubric, read


def test_ours_can_be_read():
    rubric, constitution = read(Rubric, None), read(Constitution, None)
    assert len(rubric.criteria) >= 3
    assert rubric.text.startswith(rubric.question)
    assert f"2. {rubric.criteria[1]}" in rubric.text
    assert len({one.name for one in constitution.principles}) == len(constitution.principles) >= 3
    assert len(rubric.hash) == len(constitution.hash) == 16


def test_the_hash_follows_the_content(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: n\nquestion: Which?\ncriteria: [one, two]\n")
    first = read(Rubric, file)
    assert first.text == "Which?\n\n1. one\n2. two"
    file.write_text("# a comment\nquestion: 'Which?'\nname: n\ncriteria:\n- one\n- two\n")
    assert read(Rubric, file).hash == first.hash
    file.write_text("name: n\nquestion: Which?\ncriteria: [two, one]\n")
    assert read(Rubric, file).hash != first.hash


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: n\nquestion: Q\ncriteria: [one]\nweight: 3\n", "FILE:4 weight is not one of its keys"),
        ("name: n\ncriteria: [one]\n", "FILE question: Field required"),
        ("name: n\nquestion: Q\ncriteria: [one, 3]\n", "FILE:3 criteria.1: Input should be a valid string"),
        ("name: n\nquestion: Q\ncriteria: []\n", "FILE:3 criteria: "),
        ("name: n\nquestion: ' '\ncriteria: [one]\n", "FILE:2 question: "),
        ("- one\n", "FILE: Input should be"),
        ("", "FILE: Input should be"),
    ],
)
def test_mistakes_are_told_with_their_lines(tmp_path, text, told):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match="is no rubric") as caught:
        read(Rubric, file)
    assert caught.value.details[0].startswith(told.replace("FILE", str(file)))
    assert "rubric.yaml" in caught.value.remedy


def test_principles_are_checked_one_by_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: n\nprinciples:\n- name: one\n  critique: C\n  revision: R\n- name: two\n  critique: C\n"
    )
    with pytest.raises(RecipeError, match="is no constitution") as caught:
        read(Constitution, file)
    assert caught.value.details[0].startswith(f"{file}")
    assert "principles.1.revision: Field required" in caught.value.details[0]


def test_what_is_no_yaml_or_not_there(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: n\nname: m\n")
    with pytest.raises(RecipeError, match=f"{file}:2"):
        read(Rubric, file)
    with pytest.raises(RecipeError, match="does not exist"):
        read(Rubric, tmp_path / "nowhere.yaml")
