"""Formats with one answer or none: thumbs (KTO), conversations to imitate (SFT), prompts, and what is refused."""

from collections.abc import Mapping
from typing import NoReturn

from lite_align.data.formats.conversation import BadRow, assistant, turns, user
from lite_align.data.formats.pairs import history, instruction
from lite_align.data.formats.registry import Fields, data_format, read_flag
from lite_align.data.strict_json import Json
from lite_align.data.types import Chat, Conversation, Message, Prompt, Rated

_ANSWERS = ("chosen", "rejected", "completion", "response", "answer", "answers", "output", "completions")
_PAIRS = ("chosen", "rejected", "rejected_response", "response_j", "chosen_response")


def _has_thumb(*names: str):
    def look(row: Mapping[str, Json]) -> bool:
        value = next((row[name] for name in names if row.get(name) is not None), None)
        return read_flag(value) is not None

    return look


def _ends_with(*roles: str):
    def look(row: Mapping[str, Json]) -> bool:
        value = next((row[name] for name in ("messages", "conversations") if row.get(name) is not None), None)
        last = value[-1] if isinstance(value, list) and value else value
        role = last.get("role", last.get("from")) if isinstance(last, dict) else None
        return isinstance(role, str) and (role.lower() in roles)

    return look


def _prompt(row: Fields) -> Conversation:
    value = row.value("prompt")
    return row.with_system(user(value)) if isinstance(value, str) else row.turns("prompt")


@data_format(
    "kto.text",
    "rated",
    "prompt, completion and label (thumb) with text",
    {"prompt": "text", "completion": "text", "label": "flag"},
    when=_has_thumb("label"),
)
def kto_text(row: Fields) -> Rated:
    """Wrap the texts as turns."""
    return row.rated(_prompt(row), assistant(row.text("completion").removeprefix(" ")), row.flag("label"))


@data_format(
    "kto.chat",
    "rated",
    "prompt, completion and label (thumb) with messages",
    {"prompt": "turns", "completion": "answer", "label": "flag"},
    when=_has_thumb("label"),
)
def kto_chat(row: Fields) -> Rated:
    """Take the messages."""
    return row.rated(_prompt(row), row.answer("completion"), row.flag("label"))


@data_format(
    "kto.chat-only",
    "rated",
    "messages or conversations that end with the answer, and kto_tag or label",
    {"messages|conversations": "turns", "kto_tag|label": "flag"},
    without=_PAIRS,
    when=_has_thumb("kto_tag", "label"),
)
def kto_chat_only(row: Fields) -> Rated:
    """Take the last turn as the answer."""
    messages = row.turns("messages|conversations")
    return row.rated(messages[:-1], messages[-1:], row.flag("kto_tag|label"))


@data_format(
    "sft.messages",
    "chat",
    "messages with role and content",
    {"messages": "turns"},
    without=_PAIRS,
)
def sft_messages(row: Fields) -> Chat:
    """Take the messages."""
    return row.chat(row.turns("messages"))


@data_format(
    "sft.sharegpt",
    "chat",
    "conversations with from and value",
    {"conversations": "turns"},
    without=_PAIRS,
)
def sft_sharegpt(row: Fields) -> Chat:
    """Take the conversation."""
    return row.chat(row.turns("conversations"))


@data_format(
    "sft.alpaca",
    "chat",
    "instruction (and input, system, history) and output",
    {"instruction": "text", "output": "text"},
    without=_PAIRS,
    note="instruction and input are joined with a line break",
)
def sft_alpaca(row: Fields) -> Chat:
    """Join instruction and input, after system and history."""
    return row.chat((*instruction(row), *assistant(row.text("output"))))


@data_format(
    "sft.prompt-completion",
    "chat",
    "prompt and completion as text or messages",
    {"prompt": "answer", "completion": "answer"},
    without=_PAIRS,
    note="one leading space of the completion goes",
)
def sft_prompt_completion(row: Fields) -> Chat:
    """Put the completion after the prompt."""
    completion = row.answer("completion")
    if isinstance(row.row["completion"], str):
        completion = assistant(completion[0].content.removeprefix(" "))
    return row.chat((*_prompt(row), *completion))


@data_format(
    "sft.qa",
    "chat",
    "query or question (and history), response or answer",
    {"query|question": "text", "response|answer": "text"},
    without=_PAIRS,
)
def sft_qa(row: Fields) -> Chat:
    """Put the answer after the question."""
    question = (*history(row), Message("user", row.text("query|question")))
    return row.chat((*row.with_system(question), *assistant(row.text("response|answer"))))


@data_format(
    "sft.text",
    "chat",
    "text alone",
    {"text": "text"},
    without=("prompt", "messages", "conversations", "instruction", *_ANSWERS),
    note="the loss covers all tokens of the text",
)
def sft_text(row: Fields) -> Chat:
    """Take the text as one assistant turn without a prompt."""
    text = row.text("text")
    if not text.strip():
        raise BadRow('"text" is empty')
    return Chat(row.source, row.category(), row.id(), messages=assistant(text), raw=True)


@data_format(
    "prompts",
    "prompt",
    "prompt alone, as text or messages",
    {"prompt": "answer"},
    without=_ANSWERS,
)
def prompts(row: Fields) -> Prompt:
    """Take the prompt."""
    return row.prompt(_prompt(row))


@data_format(
    "prompts.messages",
    "prompt",
    "messages that end with a user turn",
    {"messages|conversations": "turns"},
    without=(*_ANSWERS, *_PAIRS),
    when=_ends_with("user", "human", "prompter"),
)
def prompts_messages(row: Fields) -> Prompt:
    """Take the messages."""
    name = row.name_of("messages|conversations")
    return row.prompt(row.with_system(turns(row.row[name], name)))


@data_format(
    "process-reward",
    "refused",
    "completions with a label for each step",
    {"completions": "list", "labels": "list"},
)
def process_reward(row: Fields) -> NoReturn:
    """Refuse: labels of single steps are no preferences."""
    raise BadRow('"completions" with "labels" (a reward for each step) are not supported; give whole answers')


def _has_media(row: Mapping[str, Json]) -> bool:
    return any(bool(row.get(name)) for name in ("images", "image", "videos", "audios"))


@data_format(
    "media",
    "refused",
    "images, videos or audio",
    {"images|image|videos|audios": "any"},
    when=_has_media,
)
def media(row: Fields) -> NoReturn:
    """Refuse: only text is trained."""
    raise BadRow("images, videos and audio are not supported; only text can be trained")
