"""The page: what it says, that it is safe and self-contained, and how a browser sees it."""

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import opened
from lite_align.evaluate.folder import read
from lite_align.evaluate.pages import compared, side_by_side
from lite_align.evaluate.report import render, write
from tests.browser import ATTACKS, CONTRAST, chromium, needs_chromium
from tests.evaluate import evaluated

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


def whole(build: Builder, name: str = "dpo-preferences-0001", **options: Any) -> Path:
    """A run with an evaluation, gates, a promotion that was refused, lint and a parent."""
    folder = build(
        name,
        run={
            "parents": [
                {"run": "runs/sft-0001", "stage": "sft", "role": "policy", "adapter": "01234567" * 8}
            ],
            "data": {
                **{"rows": 640, "dropped": {"LA301": 19}, "kind": "pairs"},
                "warnings": [{"rule": "LA305", "text": "chosen is longer in 71 % of pairs"}],
                "tokens": {"chosen": {"longest": 7}, "prompt": {"95 %": 20, "longest": 1031, "median": 9}},
            },
        },
        **options,
    )
    return evaluated.put(
        folder, eval=evaluated.evaluation(), gates=evaluated.gates(), promotion=evaluated.promotion()
    )


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
            **{"stage": texts[0], "status": texts[1], "command": texts},
            "parents": [texts[2], {"run": texts[3], "stage": texts[4], "adapter": texts[5]}],
            **{"started": texts[0], "provenance": {texts[3]: texts[4]}},
            **{
                k: {t: t for t in texts}
                for k in ("recipe", "model", "reference", "versions", "hashes", "plan")
            },
            "data": {
                **{"name": texts[0], "dropped": {t: t for t in texts}},
                "warnings": [{"rule": t, "text": t} for t in texts],
                "tokens": {t: {t: t for t in texts} for t in texts},
            },
        },
    )
    rows = [row | {"category": texts[i % len(texts)]} for i, row in enumerate(read(folder).held_out)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hostile = {name: evaluated.figure(0.5, 0.1, 0.4, unit=name) for t in texts for name in (t, f"kl/{t}")}
    judged = [{"gate": t, "figure": t, "verdict": t, "why": t, "value": t} for t in texts]
    return evaluated.put(
        folder,
        eval={
            "figures": hostile | {"bad " + t: t for t in texts},
            "data": {t: t for t in texts},
            "command": texts,
        },
        gates={"gates": judged + [{**judged[0], "gate": t + ">=1"} for t in texts]},
        promotion={name: texts[n] for n, name in enumerate(("time", "who", "why", "against", "project"))}
        | {"passed": texts[0], "gates": judged},
    )


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


def test_who_decided_on_a_promotion_when_why_and_against_what(build: Builder) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", render(read(whole(build)))).split())
    section = text[text.rindex("Promotion") :]
    for part in (
        *("Promotion refused who ann time 2026-01-05T13:00:00+00:00 why fewer needless refusals",),
        *(
            "against runs/a project project gates 1 of 3 passed · FAILED kl &lt;=1 · too little evidence alpha",
        ),
    ):
        assert part in section[:400]
    assert "Promotion" not in render(read(build("never-promoted")))


def test_evaluation_and_gates_are_on_the_page(build: Builder) -> None:
    page = render(read(whole(build))).replace("\u00a0", " ")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    top = text[text.index("Skip to") :][:1500]
    for part in (
        *("KL to the reference", "1.9 nats", "[1.5, 2.3], 60 rows"),
        *("Not through its gates: kl &lt;=1. Held-out accuracy",),
        *("FAILED kl &lt;=1 · 1.9 nats [1.5, 2.3]", "too little evidence alpha &gt;=0.4"),
        *("passed refusal/unsafe &gt;=0.8 · 95 % [86 %, 98 %]",),
    ):
        assert part in top, part
    assert re.search(
        r"Pair accuracy\s+60\s+50 %\s+78 %\s+\[69 %, 87 %\]\s+\+28 \[\+19, \+37\] points\s+better", text
    )
    assert re.search(r"Over-refusal\s.*?better", text)
    assert "length-short" in text
    assert "the whole interval lies above 1" in text
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert {"Pair accuracy", "KL to the reference", "Refusals"} <= set(titles)


def test_data_lint_lengths_and_lineage_are_on_the_page(build: Builder) -> None:
    text = re.sub(r"<[^>]+>", " ", render(read(whole(build))).replace("\u00a0", " "))
    for pattern in (
        r"LA301\s+19 rows left out\s+LA305\s+chosen is longer in 71 % of pairs",
        r"median\s+95 %\s+longest\s+prompt\s+9\s+20\s+1,031\s+chosen\s+–\s+–\s+7",
        r"dpo-preferences-0001\s+dpo\s+this run\s+runs/sft-0001\s+sft\s+adapter 012345670123 · its folder is not",
    ):
        assert re.search(pattern, text), pattern


def test_settings_with_their_defaults_are_folded(build: Builder) -> None:
    page = render(read(build()))
    before, _, after = page.partition("settings with their defaults</summary>")
    assert "--model" in before
    assert "auto: a small model" in before
    assert ">default<" in after
    assert ">default<" not in before


def test_sections_that_are_there_are_linked(build: Builder) -> None:
    found = parse(render(read(whole(build))))
    ids = {value for name, value in found.attributes if name == "id"}
    links = [value for name, value in found.attributes if name == "href" and value != "#main"]
    sections = [link for link in links if link and link.startswith("#s-")]
    assert {link[1:] for link in sections} <= ids
    assert len(sections) == len({i for i in ids if i and i.startswith("s-")}) == 10


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
    sound, found = parse(render(read(whole(build)))), parse(page)
    assert set(found.tags) <= set(sound.tags)
    assert {name for name, _ in found.attributes} <= {name for name, _ in sound.attributes}
    assert not re.search("[\u202e\u2066\u200b\x1b\x07\ud800]", page)
    assert "{{ 7*7 }}" in page
    assert "<!--" not in page  # an attack that opens a comment would hide the others


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
    assert "<!--" not in page  # an attack that opens a comment would hide the others
    assert page.count('<details class="card samples"') == 12
    assert "2 more prompts are in samples.jsonl" in page


def test_the_page_of_a_policy_tells_of_hacking_first_and_shows_samples(build_policy: Builder) -> None:
    page = render(read(build_policy(hacked=True, rolled_back_to=18)))
    text = re.sub(r"<[^>]+>", "", page)
    assert text.index("Reward hacking was seen at step 36") < text.index("Rule score")
    headings = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page)
    assert headings[:3] == ["Curves", "Reward against KL", "Reward"]
    assert {"Rule score by category", "Rule score by category over the run", "Samples over the run"} <= set(
        headings
    )
    assert page.count('<details class="card samples"') == 3
    assert page.count(" open>") == 1
    assert "Please feel free to ask again" in text
    ids = [value for name, value in parse(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def hostile(build: Builder, tmp_path: Path, kind: str) -> Path:
    """A page of attacks: of a run, of two runs, or of a comparison."""
    texts = list(ATTACKS)
    if kind == "run":
        return write(attacked(build))
    if kind == "runs":
        folders = [attacked(build, "attacked"), attacked(build, texts[0].replace("/", "") + "'")]
        return side_by_side.write(folders, tmp_path / "runs.html")
    record = {
        **{
            "sides": texts[:2],
            "judge": texts[3],
            "command": texts,
            "time": texts[4],
            texts[5]: {texts[6]: texts[7]},
        },
        **{"figures": {t: evaluated.figure(0.5, 0.1, 0.4, unit=t) for t in (*texts, f"win_rate/{texts[0]}")}},
        **{"failures": {t: t for t in texts}, "position_bias": {"value": 0.5, "count": 9}},
        "ranking": {t: evaluated.figure(0.5, 0.1, None, unit=t) for t in texts},
        "agreement": {"figures": {f"kappa/{t}": evaluated.figure(0.5, 0.1, 0.4, unit=t) for t in texts}},
    }
    gates = [{"gate": t, "figure": t, "verdict": t, "why": t, "value": t} for t in texts]
    rows = [
        {
            **{"prompt": [{"role": t, "content": t}], "a": t, "b": texts[-n], "category": t, "choice": "a"},
            **{"annotator": t, "note": t, "model_a": t, "model_b": texts[1]},
        }
        for n, t in enumerate(texts)
    ]
    folder = evaluated.compared(tmp_path / "compare", record, rows)
    return compared.write(evaluated.put(folder, gates={"gates": gates}))


@pytest.mark.parametrize("kind", ["runs", "comparison"])
def test_attacks_on_other_pages_stay_text(build: Builder, tmp_path: Path, kind: str) -> None:
    page = hostile(build, tmp_path, kind).read_text(encoding="utf-8")
    found = parse(page)
    assert not {"script", "iframe", "object", "embed", "base", "form", "a href"} & set(found.tags)
    assert found.tags.count("img") == found.tags.count("link") == 0
    assert found.tags.count("style") == found.tags.count("h1") == 1
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "autofocus")]
    assert all((value or "").startswith("#") for name, value in found.attributes if name == "href")
    assert not re.search("[\u202e\u2066\u200b\x1b\x07\ud800]", page)
    assert "{{ 7*7 }}" in page
    assert "<!--" not in page  # an attack that opens a comment would hide the others


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("kind", ["run", "runs", "comparison"])
def test_in_a_browser_attacks_do_nothing(browser: Any, build: Builder, tmp_path: Path, kind: str) -> None:
    path = hostile(build, tmp_path, kind)
    with opened(browser, path) as (page, asked):
        page.mouse.move(200, 900)
        page.wait_for_timeout(200)
        assert page.evaluate("window.hit") is None
        assert asked == [path.as_uri()]
        assert page.evaluate("document.querySelectorAll('script, iframe, form, base, link').length") == 0


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_figures_show_filters_work_and_narrow_windows_fit(browser: Any, build: Builder) -> None:
    with opened(
        browser, write(whole(build)), viewport={"width": 390, "height": 800}, color_scheme="dark"
    ) as (
        page,
        asked,
    ):
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
def test_in_a_browser_all_text_has_aa_contrast(browser: Any, build: Builder, scheme: str) -> None:
    with opened(browser, write(whole(build, chosen=-6.0)), color_scheme=scheme) as (page, _):
        assert page.evaluate(CONTRAST) >= 4.5


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_the_page_of_a_policy_fits_opens_and_has_contrast(
    browser: Any, build_policy: Builder
) -> None:
    path = write(build_policy(hacked=True))
    with opened(browser, path, viewport={"width": 390, "height": 800}, color_scheme="dark") as (page, asked):
        assert len(asked) == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(CONTRAST) >= 4.5
        second = page.locator("details").nth(1)
        assert not second.locator("table").is_visible()
        second.locator("summary").click()
        assert second.locator("table").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_runs_side_by_side_fit_and_have_contrast(
    browser: Any, build: Builder, tmp_path: Path, scheme: str
) -> None:
    path = side_by_side.write([whole(build, "one"), whole(build, "two", gain=0.9)], tmp_path / "runs.html")
    with opened(browser, path, viewport={"width": 390, "height": 800}, color_scheme=scheme) as (page, asked):
        assert asked == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(CONTRAST) >= 4.5
        colours = page.evaluate(
            "[...document.querySelectorAll('.letter')].map(e => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(colours)) == 2
        page.get_by_label("unsafe").check()
        assert page.locator("article:visible").count() == 1


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_a_comparison_is_filtered_by_category_and_by_outcome(
    browser: Any, tmp_path: Path
) -> None:
    path = compared.write(evaluated.compared(tmp_path / "compare"))
    with opened(browser, path, viewport={"width": 390, "height": 800}, color_scheme="dark") as (page, _):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(CONTRAST) >= 4.5
        assert page.locator("article:visible").count() == 12
        page.get_by_label("a tie").check()
        assert page.locator("article:visible").count() == 3
        page.get_by_label("howto").check()
        assert page.locator("article:visible").count() == 1
        page.emulate_media(media="print")
        assert page.locator("article:visible").count() == 12


@pytest.mark.slow
@needs_chromium
def test_on_paper_folded_settings_are_open(browser: Any, build: Builder) -> None:
    with opened(browser, write(build())) as (page, _):
        shown = "document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})"
        assert not page.evaluate(shown)
        page.emulate_media(media="print")
        page.wait_for_function(shown)  # what was skipped is laid out in the next frame
