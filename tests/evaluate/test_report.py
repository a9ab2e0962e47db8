"""The page: what it says, that it is safe and self-contained, and how a browser sees it."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lite_align.evaluate.folder import read
from lite_align.evaluate.report import badges, command_line, differences, render, write
from tests.browser import ATTACKS, CONTRAST, chromium, needs_chromium

Builder = Callable[..., Path]


class Tags(HTMLParser):
    """Collects tags, attributes and duplicate ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parse(page: str) -> Tags:
    found = Tags()
    found.feed(page)
    return found


def attacked(build: Builder, name: str = "attacked") -> Path:
    """A run in which every text of the user or the model is an attack."""
    texts = list(ATTACKS)
    all_of_them = " ".join(texts)
    folder = build(
        name,
        answers=[
            {"prompt": t, "category": texts[-i], "before": t, "after": all_of_them, "after_tokens": 3}
            for i, t in enumerate(texts)
        ],
        run={
            **{"stage": texts[0], "status": texts[1], "parents": [texts[2]], "command": texts},
            **{"started": texts[0], "provenance": {texts[3]: texts[4]}},
            **{
                k: {t: t for t in texts}
                for k in ("recipe", "model", "reference", "versions", "hashes", "plan")
            },
            "data": {"name": texts[0], "dropped": {t: t for t in texts}},
        },
    )
    rows = [row | {"category": texts[i % len(texts)]} for i, row in enumerate(read(folder).held_out)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_key_figures_proofs_and_changes_are_on_the_page(build: Builder) -> None:
    page = write(build()).read_text(encoding="utf-8").replace("\u00a0", " ")
    text = re.sub(r"<[^>]+>", "", page)
    for part in (
        *("dpo-preferences-0001", "better", "78 %", "[66 %, 87 %]", "60 pairs", "0.43", "+23 %"),
        *("starts at its reference · loss 0.6931, expected 0.6931", "reference fixed · sha 3f9caaaaaaaa"),
        *("adapter moves · 100.0 % of its parameters", "LA301 identical", "2,620,000", "--set"),
        *("lite-align dpo preferences.jsonl --set loss.beta=0.3", "borderline", "check for verbosity"),
    ):
        assert part in text, part
    changed = re.findall(r'<tr class="changed">.*?</tr>', page)
    assert [re.sub(r"<[^>]+>", " ", row).split()[0:2] for row in changed] == [
        ["model.", "name"],
        ["loss.", "beta"],
    ]
    assert "<ins>ten on Saturday.</ins>" in page
    assert "100 % of rows" in text


def test_badges_say_what_was_proved_and_what_was_not(build: Builder) -> None:
    fine = badges(read(build()))
    assert [badge.passed for badge in fine] == [True] * 4
    bad = build(
        "unproved",
        run={
            "status": "failed",
            "reference": {"base_sha256": "ab", "proof": {"loss": 0.75, "expected": 0.6931}},
        },
        metrics=[{"step": 1, "loss": float("nan"), "moved": 0.004}],
    )
    assert [(badge.name, badge.passed) for badge in badges(read(bad))] == [
        ("starts at its reference", False),
        ("adapter moves", False),
        ("all losses finite", False),
    ]


def test_equal_folders_give_equal_pages(build: Builder) -> None:
    folder = build()
    assert write(folder).read_bytes() == write(folder).read_bytes()
    assert not list(folder.glob("*.tmp"))


def test_the_page_needs_nothing_and_names_its_parts(build: Builder) -> None:
    page = render(read(build()))
    found = parse(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    links = {
        v for name, v in found.attributes if name in {"src", "href", "xlink:href", "action", "data", "srcset"}
    }
    assert all(link and link.startswith("#") for link in links)
    assert "://" not in page
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert (
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
    ) in found.attributes
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert found.tags.count("h1") == 1
    labels = [value for name, value in found.attributes if name == "aria-label"]
    assert any(value and value.startswith("Loss by step: training from") for value in labels)


def test_attacks_stay_text(build: Builder) -> None:
    page = write(attacked(build)).read_text(encoding="utf-8")
    sound, found = parse(render(read(build()))), parse(page)
    assert set(found.tags) <= set(sound.tags)
    assert {name for name, _ in found.attributes} <= {name for name, _ in sound.attributes}
    assert not re.search("[\u202e\u2066\u200b\x1b\x07\ud800]", page)
    assert "{{ 7*7 }}" in page


@pytest.mark.parametrize("lost", ["metrics.jsonl", "held_out.jsonl", "answers.jsonl", None])
def test_a_run_without_some_file_still_has_a_page(build: Builder, lost: str | None) -> None:
    folder = build()
    for name in [lost] if lost else ["metrics.jsonl", "held_out.jsonl", "answers.jsonl"]:
        (folder / name).unlink()
    if lost is None:
        (folder / "run.json").write_text("{}")
    assert "</html>" in write(folder).read_text(encoding="utf-8")


def test_many_answers_are_cut_off_with_a_word_about_it(build: Builder) -> None:
    page = render(read(build(answers=[{"prompt": "p", "before": "a", "after": "b"}] * 130)))
    assert "30 more are in answers.jsonl" in page
    assert page.count("<article") == 100


def test_differences_are_marked_by_words() -> None:
    before, after = differences("The library opens at ten. It is nice.", "The library opens at ten sharp.")
    assert [(s.text, s.mark) for s in before] == [("The library opens at ", ""), ("ten. It is nice.", "del")]
    assert [(s.text, s.mark) for s in after] == [("The library opens at ", ""), ("ten sharp.", "ins")]
    # One common word between two changes is not a match worth showing: "so" stays inside the mark.
    before, after = differences("It is good so far", "It is bad so what")
    assert [(s.text, s.mark) for s in after] == [("It is ", ""), ("bad so what", "ins")]
    # Nothing in common, or too much to compare: plain text.
    assert [s.mark for side in differences("Take a pin", "Call someone else") for s in side] == ["", ""]
    long = "word " * 1600
    assert [s.mark for s in differences(long, long + "x")[1]] == [""]


def test_differences_lose_no_text() -> None:
    texts = ("a  b\n\nc", " lead a b trail ", "x\ty", "")
    for before in texts:
        for after in texts:
            left, right = differences(before, after)
            assert ("".join(s.text for s in left), "".join(s.text for s in right)) == (before, after)


def test_the_command_can_be_pasted() -> None:
    assert command_line(["lite-align", "dpo", "my data.jsonl"]) == "lite-align dpo 'my data.jsonl'"
    assert command_line(None) == ""


def attacked_policy(build_policy: Builder) -> Path:
    """A ppo run in which samples, categories and guards are attacks."""
    texts = list(ATTACKS)
    return build_policy(
        "attacked-policy",
        metrics=lambda rows: [
            *rows,
            *({"step": s, **{f"eval/rule_score/{t}": 0.5 + s / 99 for t in texts}} for s in (1, 2)),
        ],
        samples=[
            {
                "step": s,
                "prompt": t,
                "category": texts[-n],
                "answer": texts[n - s],
                "tokens": t,
                "reward": 0.5,
            }
            for n, t in enumerate(texts)
            for s in (0, 6)
        ],
        guards=[{"step": t, "guard": t, "action": t, "text": t} for t in texts]
        + [{"step": 1, "guard": "hacking", "action": "warn", "text": t} for t in texts],
        blind=texts,
        rolled_back_to=texts[0],
        preference={"before": texts[0]},
    )


def test_attacks_in_samples_and_guards_stay_text(build_policy: Builder) -> None:
    page = write(attacked_policy(build_policy)).read_text(encoding="utf-8")
    sound, found = parse(render(read(build_policy()))), parse(page)
    assert set(found.tags) <= set(sound.tags)
    assert {name for name, _ in found.attributes} <= {name for name, _ in sound.attributes}
    assert not re.search("[\u202e\u2066\u200b\x1b\x07\ud800]", page)
    assert "{{ 7*7 }}" in page
    assert page.count("<details") == 12
    assert "2 more prompts are in samples.jsonl" in page


def test_the_page_of_a_policy_tells_of_hacking_first_and_shows_samples(build_policy: Builder) -> None:
    page = render(read(build_policy(hacked=True, rolled_back_to=18)))
    text = re.sub(r"<[^>]+>", "", page)
    assert text.index("Reward hacking was seen at step 36") < text.index("Rule score")
    headings = re.findall(r"<h[23]>(.*?)</h[23]>", page)
    assert headings[:3] == ["Curves", "Reward against KL", "Reward"]
    assert {"Rule score by category", "Rule score by category over the run", "Samples over the run"} <= set(
        headings
    )
    assert page.count("<details") == 3
    assert page.count(" open>") == 1
    assert "Please feel free to ask again" in text
    ids = [value for name, value in parse(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))


# In a browser.


@contextmanager
def opened(path: Path, **options) -> Iterator[tuple]:
    """The page in headless Chromium, and the list of addresses that it asked for."""
    with chromium() as browser:
        page = browser.new_context(**options).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append("dialog"))
        page.goto(path.as_uri())
        yield page, asked


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_attacks_do_nothing(build: Builder) -> None:
    path = write(attacked(build))
    with opened(path) as (page, asked):
        page.mouse.move(200, 900)
        page.wait_for_timeout(200)
        assert page.evaluate("window.hit") is None
        assert asked == [path.as_uri()]
        assert page.evaluate("document.querySelectorAll('script, iframe, form, base, link').length") == 0


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_figures_show_filters_work_and_narrow_windows_fit(build: Builder) -> None:
    with opened(write(build()), viewport={"width": 390, "height": 800}, color_scheme="dark") as (page, asked):
        assert len(asked) == 1
        for text in ("better", "78 %", "+23 %"):
            assert page.get_by_text(text.replace(" ", "\u00a0")).first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(18, 20, 23)"
        assert page.locator("article:visible").count() == 4
        page.get_by_label("unsafe").check()
        assert page.locator("article:visible").count() == 1
        page.keyboard.press("ArrowLeft")
        assert page.locator("article:visible").count() == 1
        page.emulate_media(media="print", color_scheme="light")
        assert page.locator("article:visible").count() == 4
        lightest = page.evaluate(CONTRAST)
        assert lightest >= 4.5


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_all_text_has_aa_contrast(build: Builder, scheme: str) -> None:
    with opened(write(build(chosen=-6.0)), color_scheme=scheme) as (page, _):
        assert page.evaluate(CONTRAST) >= 4.5


def test_what_a_run_continues_is_told_by_name_and_hash(build: Callable[..., Path]) -> None:
    folder = build()
    record = json.loads((folder / "run.json").read_text())
    parents = [{"run": "runs/sft-0001", "stage": "sft", "role": "policy", "adapter": "0123456789abcdef" * 4}]
    (folder / "run.json").write_text(json.dumps({**record, "parents": parents}))
    assert "Continues runs/sft-0001 (sft, adapter 0123456789ab)." in render(read(folder))


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_the_page_of_a_policy_fits_opens_and_has_contrast(build_policy: Builder) -> None:
    path = write(build_policy(hacked=True))
    with opened(path, viewport={"width": 390, "height": 800}, color_scheme="dark") as (page, asked):
        assert len(asked) == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(CONTRAST) >= 4.5
        second = page.locator("details").nth(1)
        assert not second.locator("table").is_visible()
        second.locator("summary").click()
        assert second.locator("table").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
