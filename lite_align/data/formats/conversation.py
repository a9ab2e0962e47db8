"""Values of a row into conversations: role names, typed content, transcripts, and where a prompt ends."""

import re
import unicodedata
from os.path import commonprefix

from lite_align.data.strict_json import Json, kind_of
from lite_align.data.types import Conversation, Message

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_UNTRAINED = ("tool_calls", "reasoning_content", "thinking")


class BadRow(Exception):
    """A row does not fit its format; the message says what is wrong without the place."""


def user(text: str) -> Conversation:
    """One user turn."""
    return (Message("user", text),)


def assistant(text: str) -> Conversation:
    """One assistant turn."""
    return (Message("assistant", text),)


def turns(value: Json, where: str) -> Conversation:
    """Read one message or a list of messages (`role`/`content` or `from`/`value`).

    Raises:
        BadRow: not a message, an unknown role, content that is not text.
    """
    if isinstance(value, dict):
        return (_message(value, f'"{where}"'),)
    if not isinstance(value, list):
        raise BadRow(f'"{where}" is {kind_of(value)}; a list of messages expected')
    if not value:
        raise BadRow(f'"{where}" is an empty list; messages expected')
    return tuple(_message(item, f'turn {number} of "{where}"') for number, item in enumerate(value, 1))


def answer_turns(value: Json, where: str) -> Conversation:
    """Read an answer: text, one message, or a list of messages."""
    if isinstance(value, str):
        return assistant(value)
    if not isinstance(value, (list, dict)):
        raise BadRow(f'"{where}" is {kind_of(value)}; text or messages expected')
    return turns(value, where)


def _message(item: Json, where: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{where} is {kind_of(item)}; a message with role and content expected")
    role_key = "role" if "role" in item else "from"
    role = item.get(role_key)
    if not isinstance(role, str):
        raise BadRow(f"{where} has no role; its keys: {', '.join(item)}")
    known = ROLES.get(role.lower())
    if known is None:
        raise BadRow(f"{where} has the unknown role {role!r}; known: {', '.join(ROLES)}")
    for key in _UNTRAINED:
        if item.get(key):
            raise BadRow(f'{where} has "{key}", which would be lost; write it into the content')
    return Message(known, _content(item.get("content" if "content" in item else "value"), where))


def _content(value: Json, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow(f"the content of {where} is {kind_of(value)}; text expected")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("value")) if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            shown = f"of type {kind!r}" if isinstance(kind, str) else "without a text"
            raise BadRow(f"the content of {where} has a part {shown}; only text can be trained")
        texts.append(text)
    return "".join(texts)


def transcript(text: str, where: str) -> Conversation:
    r"""Parse `\n\nHuman: …\n\nAssistant: …`; the spaces beside the marks are not part of a turn."""
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        raise BadRow(f'"{where}" does not begin with a "Human:" turn')
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)
    )


def is_transcript(text: str) -> bool:
    """Tell whether a text is written as Human/Assistant turns."""
    first = _TURN.match(text)
    return first is not None and first[1] == "Human" and "\n\nAssistant:" in text


def check_prompt(prompt: Conversation) -> None:
    """Check that a prompt can be answered: no empty turn, a user first, and a user or a tool last.

    Raises:
        BadRow: the prompt is empty, a role stands where it cannot, or a turn has no text.
    """
    spoken = [message for message in prompt if message.role != "system"]
    if not spoken or (len(spoken) == 1 and not spoken[0].content.strip()):
        raise BadRow("the prompt is empty")
    if any(message.role == "system" for message in prompt[1:]):
        raise BadRow("a system turn stands after the first turn of the prompt")
    if spoken[0].role != "user":
        raise BadRow(f"the prompt begins with a turn of the {spoken[0].role}; a user turn expected")
    if spoken[-1].role == "assistant":
        raise BadRow("the prompt ends with a turn of the assistant; a user turn expected")
    for number, message in enumerate(prompt, 1):
        if message.role in ("user", "assistant") and not message.content.strip():
            raise BadRow(f"turn {number} of the prompt ({message.role}) is empty")


def check_answer(answer: Conversation, where: str) -> None:
    """Check that an answer begins and ends with the assistant.

    Raises:
        BadRow: no turn at all, or another role first or last.
    """
    if not answer:
        raise BadRow(f'"{where}" has no answer after the prompt')
    for place, message in (("begins", answer[0]), ("ends", answer[-1])):
        if message.role != "assistant":
            role = message.role
            raise BadRow(f'the answer "{where}" {place} with a turn of the {role}; the assistant expected')
    if any(message.role == "system" for message in answer):
        raise BadRow(f'the answer "{where}" holds a system turn')


def without_prompt(answer: Conversation, prompt: Conversation) -> Conversation:
    """Drop the prompt's turns where the answer repeats them."""
    repeats = len(answer) > len(prompt) and answer[: len(prompt)] == prompt
    return answer[len(prompt) :] if repeats else answer


def split_turns(
    chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """Split two conversations at their last shared turn into prompt, chosen and rejected.

    Raises:
        BadRow: they differ in a turn that is not the assistant's.
    """
    longest = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < longest and chosen[shared] == rejected[shared]:
        shared += 1
    for answer in (chosen, rejected):
        if shared and answer[shared].role != "assistant":
            raise BadRow(
                f'"chosen" and "rejected" part at turn {shared + 1}, which is of the {answer[shared].role}; '
                "only answers may differ"
            )
    if not shared:
        raise BadRow('"chosen" and "rejected" share no first turn; there is no prompt')
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts after their shared beginning, never inside a word, into prompt, chosen and rejected.

    Example: `The sky is blue.` and `The sky is green.` give `The sky is`, `blue.` and `green.`; equal texts part
    before their last word.

    Raises:
        BadRow: no whole word is shared.
    """
    shared = commonprefix([chosen.rstrip(), rejected.rstrip()])  # noqa: RUF071  (characters are wanted)
    if chosen.rstrip() == rejected.rstrip():
        shared = shared[:-1]
    end = len(shared)
    while end and not _ends_a_word(shared[end - 1]):
        end -= 1
    prompt = shared[:end].rstrip()
    if not prompt.strip():
        raise BadRow('"chosen" and "rejected" share no whole first word; there is no prompt')
    return prompt, chosen[end:].strip(), rejected[end:].strip()


def _ends_a_word(character: str) -> bool:
    """Tell whether a word cannot go on after this character: a space, or a full-width sentence mark."""
    wide = unicodedata.east_asian_width(character) in "WF"
    return character.isspace() or (wide and unicodedata.category(character).startswith("P"))
