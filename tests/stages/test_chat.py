"""chat: the conversation grows, commands work, history can be trained on, and a person at a terminal sees it."""

import errno
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from lite_align import cli
from lite_align.data import sources
from lite_align.data.formats import convert, detect
from lite_align.data.types import Message
from lite_align.errors import DataError, UserError
from lite_align.model.backbone import Role
from lite_align.stages import chat
from lite_align.stages.scorer import Score
from lite_align.stages.speaker import Reply, Sampling
from lite_align.view import View
from tests import finished


class Partner:
    """Answers with a number; keeps at most `room` messages."""

    def __init__(self, *roles: Role, room: int = 99) -> None:
        self.sampling = Sampling(temperature=0.5, seed=7)
        self.roles = (Role.POLICY, *roles, Role.BASE)
        self.room = room
        self.asked: list[tuple] = []
        self.replies: list[Reply] = []

    def fit(self, conversation):
        if "too long" in conversation[-1].content:
            raise DataError("This message has 900 tokens.", remedy="Shorten it.")
        dropped = max(0, (len(conversation) - self.room + 1) // 2)
        return conversation[2 * dropped :], dropped

    def say(self, conversation, role, seed, show):
        self.asked.append((conversation, role, seed))
        reply = self.replies.pop(0) if self.replies else Reply(f"answer {len(self.asked)}")
        show(reply.text)
        return reply


def talk(partner: Partner, lines: list[str], **options) -> str:
    out = io.StringIO()

    def read_line() -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    chat.converse(chat.Talk(partner, View(file=out, errors=out), **options), read_line, echo=True)
    return out.getvalue()


def user(text: str) -> Message:
    return Message("user", text)


def test_a_conversation_keeps_its_turns_and_counts_its_seeds():
    partner = Partner()
    out = talk(partner, ["Hi", "/base", "And?", "/new", "/base", "Again"])
    hi, first = user("Hi"), Message("assistant", "answer 1")
    assert partner.asked == [
        ((hi,), Role.POLICY, 7),
        ((hi,), Role.BASE, 7),  # the same sampling, so that only the adapter differs
        ((hi, first, user("And?")), Role.POLICY, 8),
        ((user("Again"),), Role.POLICY, 9),
    ]
    assert " policy    answer 1\n" in out
    assert " base      answer 2\n" in out
    assert "nothing was said yet" in out


def test_a_run_with_a_reference_shows_it_before_the_base():
    partner = Partner(Role.REFERENCE)
    talk(partner, ["Hi", "/base", "/base", "/base", "Next", "/base"])
    assert [role for _, role, _ in partner.asked] == [
        Role.POLICY,
        Role.REFERENCE,
        Role.BASE,
        Role.REFERENCE,
        Role.POLICY,
        Role.REFERENCE,
    ]


def test_an_empty_line_ends():
    partner = Partner()
    talk(partner, ["", "never"])
    assert not partner.asked


def test_the_system_text_leads_every_conversation():
    partner = Partner()
    out = talk(partner, ["Hi", "/system Be rude.", "/new", "Hi", "/system", "Hi"], system="Be kind.")
    assert [conversation[0].content for conversation, _, _ in partner.asked] == ["Be kind.", "Be rude.", "Hi"]
    assert " system    Be rude.\n" in out
    assert " system    none\n" in out


def test_words_with_a_slash():
    partner = Partner()
    out = talk(partner, ["/nope", "//etc/hosts?", "/help"])
    assert [conversation[-1].content for conversation, _, _ in partner.asked] == ["/etc/hosts?"]
    assert "/nope is no command" in out
    assert "/save FILE" in out


def test_what_does_not_fit_is_left_out_and_told():
    partner = Partner(room=3)
    out = talk(partner, ["a", "b", "c", "this is too long", "d"])
    assert [[m.content for m in conversation] for conversation, _, _ in partner.asked] == [
        ["a"],
        ["a", "answer 1", "b"],
        ["b", "answer 2", "c"],
        ["c", "answer 3", "d"],
    ]
    assert out.count("the oldest round no longer fits the model's positions") == 2
    assert "This message has 900 tokens." in out
    assert "Shorten it." in out


def test_an_answer_that_is_empty_or_cut_is_told():
    partner = Partner()
    partner.replies = [Reply(""), Reply("half", "length")]
    out = talk(partner, ["a", "b", "c"])
    assert "an empty answer; it is not kept" in out
    assert "cut at the longest answer" in out
    assert [m.content for m in partner.asked[-1][0]] == ["b", "half", "c"]


def test_the_score_of_each_answer_is_shown():
    out = talk(Partner(), ["Hi"], judge=lambda conversation, answer: Score(1.25, -0.5))
    assert "score +1.250 · -0.50 standard deviations" in out


def test_history_is_appended_and_our_readers_train_on_it(tmp_path):
    always, once = tmp_path / "always.jsonl", tmp_path / "once.jsonl"
    lines = ["Hi", "/base", "And?"]
    talk(Partner(), lines, system="Be kind.", save=always, judge=lambda *_: Score(0.5, None))
    talk(Partner(), ["Füße \x1b[31m 東京", f"/save {once}", "Next", f"/save {tmp_path}/no/such"], save=always)
    rows = [json.loads(line) for line in always.read_text("utf-8").splitlines()]
    assert [row["answered_as"] for row in rows] == ["policy", "base", "policy", "policy", "policy"]
    assert [row["sampling"]["seed"] for row in rows] == [7, 7, 8, 7, 8]
    assert rows[0]["sampling"] == {"temperature": 0.5, "top_p": 1.0, "max_tokens": 512, "seed": 7}
    assert rows[0]["score"] == {"raw": 0.5, "deviations": None}
    assert "score" not in rows[3]
    assert len(once.read_text().splitlines()) == 1
    table = sources.read(str(always))
    detection = detect(table)
    assert (detection.name, detection.share) == ("sft.messages", 1.0)
    chats = convert(table, detection)
    assert chats[2].messages == (
        Message("system", "Be kind."),
        user("Hi"),
        Message("assistant", "answer 1"),
        user("And?"),
        Message("assistant", "answer 3"),
    )
    assert chats[3].messages[0].content == "Füße \x1b[31m 東京"  # the file has what was said


def test_mistakes_end_with_code_2(tmp_path, tiny_llama, capsys):
    run = finished.run(tmp_path / "run", tiny_llama)
    for arguments, reason in (
        ([str(tmp_path)], "not a run folder"),
        ([str(run), "--max-tokens", "512"], "leaves no room"),
        ([str(run), "--top-p", "1.5"], "--top-p"),
        ([str(run), "--reward", str(run)], "no reward run"),
        ([str(run), "--save", str(tmp_path / "no" / "file")], "cannot be"),
    ):
        assert cli.run(["chat", *arguments]) == 2
        error = capsys.readouterr().err
        assert reason in " ".join(error.split())
        assert "Traceback" not in error


def test_a_save_that_fails_does_not_end_the_talk(tmp_path):
    out = talk(Partner(), ["Hi", f"/save {tmp_path}", "/save", "Next"])
    assert "cannot be" in out
    assert "a file name is missing" in out
    assert " policy    answer 2\n" in out
    with pytest.raises(UserError):
        chat.append(tmp_path, [{}])


def test_a_full_disk_is_told_as_one_and_the_talk_goes_on(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(chat.files, "append", full)
    out = talk(Partner(), ["Hi", f"/save {tmp_path / 'talk.jsonl'}", "Next"])
    assert "Make room on that disk" in " ".join(out.split())
    assert "Give another file" not in out
    assert " policy    answer 2\n" in out


# At a terminal.


def screen(data: bytes) -> str:
    """What stands on a terminal of 100 columns that knows carriage return, backspace and erasing to the right."""
    rows, row, column = [[]], 0, 0
    text = re.sub(r"\x1b\[\?\d+[hl]", "", data.decode())
    for token in re.findall(r"\x1b\[\d*[A-Za-z]|.", text, re.DOTALL):
        if token == "\r":
            column = 0
        elif token == "\n":
            rows.append([])
            row, column = row + 1, 0
        elif token == "\b":
            column -= 1
        elif token in ("\x1b[K", "\x1b[0K"):
            del rows[row][column:]
        elif token[0] == "\x1b":
            assert token.endswith("m"), token  # colours only
        elif token != "\x07":
            rows[row][column:] = [token, *rows[row][column + 1 :]]
            column += 1
    return "\n".join("".join(line).rstrip() for line in rows)


@pytest.mark.slow
def test_a_person_at_a_terminal_compares_with_one_key(tmp_path, tiny_llama):
    run = finished.run(tmp_path / "run", tiny_llama)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "lite_align", "chat", str(run), "--max-tokens", "8"]
    environment = {
        **os.environ,
        "TERM": "xterm",
        "COLUMNS": "100",
        "LITE_ALIGN_CACHE": str(tmp_path / "cache"),
    }
    child = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    seen = b""

    def wait_for(pattern: bytes, count: int) -> None:
        nonlocal seen
        end = time.monotonic() + 90
        while len(re.findall(pattern, seen)) < count:
            assert time.monotonic() < end, screen(seen)
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 4096)

    try:
        wait_for(rb" you       ", 1)
        os.write(master, b"hello world\n")
        wait_for(rb" you       ", 2)
        os.write(master, b"\t")
        wait_for(rb" you       ", 3)
        os.write(master, b"\x04")
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
    lines = screen(seen).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(" you"))
    labels = [line[:11].strip() for line in lines[start:] if line[:11].strip()]
    assert lines[start] == " you       hello world"
    assert labels == ["you", "policy", "", "you", "base", "you"] or labels == [
        "you",
        "policy",
        "you",
        "base",
        "you",
    ]
    assert " you       /base" in lines
    answers = {line[:11].strip(): line[11:] for line in lines if line[:11].strip() in ("policy", "base")}
    assert answers["policy"] != answers["base"]
    assert b"Traceback" not in seen
