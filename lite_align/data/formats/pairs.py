"""Preference formats: rows that hold a chosen and a rejected answer."""

from collections.abc import Mapping

from lite_align.data.formats.conversation import (
    BadRow,
    assistant,
    is_transcript,
    split_text,
    split_turns,
    transcript,
    user,
)
from lite_align.data.formats.registry import Fields, data_format, read_number
from lite_align.data.strict_json import Json, kind_of
from lite_align.data.types import Conversation, Message, Pair, Ranking

_WRAPPED = "texts become a user turn and assistant turns of the chat template; one leading space goes"
_PROMPTS = ("prompt", "question", "instruction", "input", "conversations", "messages", "query")


def _column_is_transcript(*names: str):
    def look(row: Mapping[str, Json]) -> bool:
        return all(isinstance(text := row.get(name), str) and is_transcript(text) for name in names)

    return look


def _prompt_from_text(text: str, where: str) -> Conversation:
    """Wrap a text as a user turn; a Human/Assistant transcript becomes its turns."""
    if not is_transcript(text):
        return user(text)
    parsed = transcript(text, where)
    return parsed[:-1] if parsed[-1] == Message("assistant", "") else parsed


def _answer_pair(row: Fields, chosen: str, rejected: str) -> tuple[Conversation, Conversation]:
    """Read two texts; where both begin with the space of a completion, it goes."""
    better, worse = row.text(chosen), row.text(rejected)
    if better[:1] == worse[:1] == " ":
        better, worse = better[1:], worse[1:]
    return assistant(better), assistant(worse)


def instruction(row: Fields, column: str = "instruction") -> Conversation:
    """Join instruction and input with a line break, after the turns of `history` and the `system` text."""
    question = "\n".join(filter(str.strip, (row.text(column), row.optional_text("input"))))
    return row.with_system((*history(row), Message("user", question)))


def history(row: Fields) -> Conversation:
    """Read earlier rounds: a list of [question, answer]."""
    rounds = row.row.get("history")
    if rounds is None or rounds == "":
        return ()
    if not isinstance(rounds, list):
        raise BadRow(f'"history" is {kind_of(rounds)}; a list of [question, answer] expected')
    told: list[Message] = []
    for number, item in enumerate(rounds, 1):
        texts = [text for text in item if isinstance(text, str)] if isinstance(item, list) else []
        if not isinstance(item, list) or len(item) != 2 or len(texts) != 2:
            raise BadRow(f'round {number} of "history" is not [question, answer] in text')
        told += [Message("user", texts[0]), Message("assistant", texts[1])]
    return tuple(told)


@data_format(
    "pair.text",
    "pair",
    "prompt, chosen and rejected as text",
    {"prompt": "text", "chosen": "text", "rejected": "text"},
    note=_WRAPPED,
)
def pair_text(row: Fields) -> Pair:
    """Wrap the texts as turns."""
    return row.pair(row.with_system(user(row.text("prompt"))), *_answer_pair(row, "chosen", "rejected"))


@data_format(
    "pair.chat",
    "pair",
    "prompt as messages, chosen and rejected as messages or text",
    {"prompt": "turns", "chosen": "answer", "rejected": "answer"},
)
def pair_chat(row: Fields) -> Pair:
    """Take the messages; answers that repeat the prompt lose it."""
    return row.pair(row.turns("prompt"), row.answer("chosen"), row.answer("rejected"))


@data_format(
    "pair.chat-implicit",
    "pair",
    "chosen and rejected as whole conversations, no prompt",
    {"chosen": "turns", "rejected": "turns"},
    without=_PROMPTS,
    note="the prompt is what both conversations share, up to the last shared turn",
)
def pair_chat_implicit(row: Fields) -> Pair:
    """Split at the last shared turn."""
    return row.pair(*split_turns(row.turns("chosen"), row.turns("rejected")))


@data_format(
    "pair.text-implicit",
    "pair",
    "chosen and rejected as text that begins alike, no prompt",
    {"chosen": "text", "rejected": "text"},
    without=_PROMPTS,
    note="the prompt is the shared beginning, cut after a whole word; name a prompt column if there is one",
)
def pair_text_implicit(row: Fields) -> Pair:
    """Split after the last shared word."""
    prompt, chosen, rejected = split_text(row.text("chosen"), row.text("rejected"))
    return row.pair(user(prompt), assistant(chosen), assistant(rejected))


@data_format(
    "hh-rlhf",
    "pair",
    "chosen and rejected as Human/Assistant transcripts",
    {"chosen": "text", "rejected": "text"},
    without=_PROMPTS,
    when=_column_is_transcript("chosen", "rejected"),
    note="transcripts become turns; the last shared turn ends the prompt",
)
def hh_rlhf(row: Fields) -> Pair:
    """Parse both transcripts and split at the last shared turn."""
    chosen, rejected = transcript(row.text("chosen"), "chosen"), transcript(row.text("rejected"), "rejected")
    return row.pair(*split_turns(chosen, rejected))


@data_format(
    "hh-rlhf.prompt",
    "pair",
    "prompt as Human/Assistant transcript, answers as text",
    {"prompt": "text", "chosen": "text", "rejected": "text"},
    when=_column_is_transcript("prompt"),
    note="transcripts become turns; one leading space of the answers goes",
)
def hh_rlhf_prompt(row: Fields) -> Pair:
    """Parse the prompt; its open `Assistant:` is the place of the answers."""
    return row.pair(_prompt_from_text(row.text("prompt"), "prompt"), *_answer_pair(row, "chosen", "rejected"))


@data_format(
    "ultrafeedback-bin",
    "pair",
    "prompt as text, chosen and rejected as conversations that repeat it",
    {"prompt": "text", "chosen": "turns", "rejected": "turns"},
    note="the prompt is what both conversations share; scores become the margin",
)
def ultrafeedback_bin(row: Fields) -> Pair:
    """Split at the last shared turn, which must be the prompt; answers alone follow the prompt text."""
    prompt, chosen, rejected = row.text("prompt"), row.turns("chosen"), row.turns("rejected")
    if chosen[0].role == rejected[0].role == "assistant":
        return row.pair(row.with_system(user(prompt)), chosen, rejected)
    shared, better, worse = split_turns(chosen, rejected)
    if prompt.strip() not in [message.content.strip() for message in shared]:
        raise BadRow('"prompt" is not a turn that "chosen" and "rejected" share')
    return row.pair(shared, better, worse)


@data_format(
    "ultrafeedback-raw",
    "pair",
    "instruction and completions with overall_score",
    {"instruction": "text", "completions": "list"},
    without=("labels",),
    note="the best score is chosen, the worst rejected; a reward model learns from every two scores that differ",
)
def ultrafeedback_raw(row: Fields) -> Ranking:
    """Rank the completions by their score; differences of scores are the margins."""
    rated = _numbered(row.items("completions"), "completions", "response", "overall_score")
    prompt = row.with_system(user(row.text("instruction")))
    return row.ranking(prompt, [(score, assistant(text)) for score, text in rated], scores=True)


def _numbered(items: list[dict[str, Json]], where: str, text: str, number: str) -> list[tuple[float, str]]:
    """Read at least two answers with their numbers from a list of objects."""
    found: list[tuple[float, str]] = []
    for place, item in enumerate(items, 1):
        answer = item.get(text)
        if not isinstance(answer, str):
            raise BadRow(f'"{text}" of entry {place} in "{where}" is {kind_of(answer)}; text expected')
        found.append((read_number(item.get(number), f'{number}" of entry {place} in "{where}'), answer))
    if len(found) < 2:
        raise BadRow(f'"{where}" has only one answer; two are needed for a pair')
    return found


@data_format(
    "argilla",
    "pair",
    "instruction, chosen_response and rejected_response",
    {"instruction|prompt": "text", "chosen_response": "text", "rejected_response": "text"},
    note=_WRAPPED,
)
def argilla(row: Fields) -> Pair:
    """Wrap the texts as turns; ratings become the margin."""
    prompt = row.with_system(user(row.text("instruction|prompt")))
    return row.pair(prompt, *_answer_pair(row, "chosen_response", "rejected_response"))


@data_format(
    "orca",
    "pair",
    "question (and system), chosen and rejected as text",
    {"question": "text", "chosen": "text", "rejected": "text"},
    without=("prompt",),
    note=_WRAPPED,
)
def orca(row: Fields) -> Pair:
    """Wrap the texts as turns, the system text first if there is one."""
    return row.pair(row.with_system(user(row.text("question"))), *_answer_pair(row, "chosen", "rejected"))


@data_format(
    "icr",
    "pair",
    "input (and system), chosen and rejected as text",
    {"input": "text", "chosen": "text", "rejected": "text"},
    without=("prompt", "instruction", "question"),
    note=_WRAPPED,
)
def icr(row: Fields) -> Pair:
    """Wrap the texts as turns; status `tie` is a margin of 0."""
    return row.pair(row.with_system(user(row.text("input"))), *_answer_pair(row, "chosen", "rejected"))


@data_format(
    "alpaca-rank",
    "pair",
    "instruction (and input, system, history), chosen and rejected as text",
    {"instruction": "text", "chosen": "text", "rejected": "text"},
    without=("prompt", "question"),
    note="instruction and input are joined with a line break",
)
def alpaca_rank(row: Fields) -> Pair:
    """Join instruction and input, after system and history."""
    return row.pair(instruction(row), *_answer_pair(row, "chosen", "rejected"))


@data_format(
    "sharegpt-rank",
    "pair",
    "conversations up to the prompt, chosen and rejected as message or text",
    {"conversations": "turns", "chosen": "answer", "rejected": "answer"},
    without=("prompt",),
)
def sharegpt_rank(row: Fields) -> Pair:
    """Take the conversation as the prompt."""
    return row.pair(row.turns("conversations"), row.answer("chosen"), row.answer("rejected"))


@data_format(
    "messages+dict",
    "pair",
    "messages up to the prompt, chosen and rejected as message or text",
    {"messages": "turns", "chosen": "answer", "rejected": "answer"},
    without=("prompt", "conversations"),
)
def messages_dict(row: Fields) -> Pair:
    """Take the messages as the prompt."""
    return row.pair(row.turns("messages"), row.answer("chosen"), row.answer("rejected"))


@data_format(
    "swift",
    "pair",
    "messages that end with the chosen answer, and rejected_response",
    {"messages": "turns", "rejected_response": "text"},
)
def swift(row: Fields) -> Pair:
    """Take the last turn as the chosen answer."""
    messages = row.turns("messages")
    if messages[-1].role != "assistant":
        raise BadRow('"messages" does not end with the chosen answer of the assistant')
    return row.pair(messages[:-1], messages[-1:], assistant(row.text("rejected_response")))


@data_format(
    "openai-pref",
    "pair",
    "input.messages, preferred_output and non_preferred_output",
    {"input": "object", "preferred_output": "answer", "non_preferred_output": "answer"},
)
def openai_pref(row: Fields) -> Pair:
    """Take the messages inside `input` as the prompt."""
    given = row.value("input")
    messages = given.get("messages") if isinstance(given, dict) else None
    prompt = Fields(row.source, {"input.messages": messages}).turns("input.messages")
    return row.pair(prompt, row.answer("preferred_output"), row.answer("non_preferred_output"))


@data_format(
    "ranked",
    "pair",
    "prompt and answers with a rank",
    {"prompt": "answer", "answers": "list"},
    note="rank 1 is the best: it is chosen, the last rank rejected; a reward model learns from every two ranks",
)
def ranked(row: Fields) -> Ranking:
    """Rank the answers, 1 first; all ranks equal is a tie."""
    ranks = _numbered(row.items("answers"), "answers", "answer", "rank")
    prompt = row.value("prompt")
    turns = _prompt_from_text(prompt, "prompt") if isinstance(prompt, str) else row.turns("prompt")
    return row.ranking(turns, [(-rank, assistant(text)) for rank, text in ranks], scores=False)


@data_format(
    "stackexchange",
    "pair",
    "question, response_j (better) and response_k",
    {"question": "text", "response_j": "text", "response_k": "text"},
    note="response_j is the better answer",
)
def stackexchange(row: Fields) -> Pair:
    """Take response_j as the chosen answer."""
    return row.pair(
        row.with_system(user(row.text("question"))), *_answer_pair(row, "response_j", "response_k")
    )


@data_format(
    "messages-weighted",
    "pair",
    "chosen_messages and rejected_messages, with loss_weight per turn",
    {"chosen_messages": "turns", "rejected_messages": "turns"},
    note="the prompt is what both conversations share; the loss weight of the answers weighs the pair",
)
def messages_weighted(row: Fields) -> Pair:
    """Split at the last shared turn; all turns of the answers must have one weight."""
    prompt, chosen, rejected = split_turns(row.turns("chosen_messages"), row.turns("rejected_messages"))
    weights: set[float] = set()
    for name, answer in (("chosen_messages", chosen), ("rejected_messages", rejected)):
        for item, message in zip(row.items(name)[-len(answer) :], answer, strict=True):
            weight = read_number(item.get("loss_weight", 1.0), "loss_weight")
            if message.role == "assistant":
                weights.add(weight)
            elif weight:
                raise BadRow(f'"{name}" gives a loss weight to a turn that is not the assistant\'s')
    if len(weights) > 1:
        raise BadRow("the answers have turns of different loss weight; a pair has one weight")
    return row.pair(prompt, chosen, rejected, weight=weights.pop() if weights else None)
