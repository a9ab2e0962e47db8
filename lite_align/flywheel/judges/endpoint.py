"""An OpenAI-compatible endpoint as judge: asked by schema, in both orders, a few questions at once.

What counts is a JSON object with exactly the keys of the schema and nothing around it. A text in which a verdict stands
somewhere is none: the models that are judged would write it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lite_align.data.strict_json import Malformed, parse
from lite_align.data.votes import Comparison, Source
from lite_align.flywheel.judges.chat_api import ChatAPI, Endpoint, NoReply
from lite_align.flywheel.judges.judgement import Advance, Judgement, Reply, Verdict, in_both_orders, swapped
from lite_align.flywheel.judges.question import BY_SCHEMA, question
from lite_align.flywheel.rubrics import Rubric

WINNERS: Mapping[str, Verdict] = {"A": "a", "B": "b", "tie": "tie"}
SCHEMA = {
    "type": "object",
    "properties": {"winner": {"type": "string", "enum": list(WINNERS)}, "reason": {"type": "string"}},
    "required": ["winner", "reason"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
}
LONGEST_REASON = 500  # characters that are kept
MOST_TOKENS = 400
AT_ONCE = 4


class EndpointJudge:
    """Asks an endpoint which answer is better.

    Args:
        endpoint: where and how.
        rubric: what to judge by.
        at_once: questions that are on their way together.
        seed: of the marks around the answers.
    """

    kind: Source = "ai"

    def __init__(self, endpoint: Endpoint, rubric: Rubric, *, at_once: int = AT_ONCE, seed: int = 0) -> None:
        self.name = f"endpoint {endpoint.model} {endpoint.host}"
        self.rubric = rubric.hash
        self._rubric, self._seed, self._at_once = rubric.text, seed, at_once
        self._api = ChatAPI(endpoint)
        self._questions = 0

    def judge(
        self, comparisons: Sequence[Comparison], advance: Advance = lambda count: None
    ) -> list[Judgement]:
        """See `Judge`.

        Raises:
            UserError: no call can succeed: see `ChatAPI.ask`.
        """
        found: list[Judgement] = []
        pool = ThreadPoolExecutor(self._at_once)
        try:
            orders = [ordered for one in comparisons for ordered in (one, swapped(one))]
            replies = pool.map(self._ask, orders)
            for one in comparisons:
                found.append(in_both_orders(one, next(replies), next(replies)))
                self._questions += 2
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def tell(self) -> list[str]:
        """See `Judge`."""
        tokens = f", {self._api.tokens:,} tokens by its own count" if self._api.tokens else ""
        return [f"{self._questions:,} questions{tokens}"]

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _ask(self, comparison: Comparison) -> Reply:
        turns = question(comparison, self._rubric, BY_SCHEMA, seed=self._seed, spelled_out=True)
        request: dict[str, Any] = {
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
            "temperature": 0,
            "max_tokens": MOST_TOKENS,
            "response_format": RESPONSE_FORMAT,
        }
        try:
            return verdict(self._api.hidden(self._api.ask(request)))
        except NoReply as error:
            return Reply.failed(error.kind, error.message)


def verdict(text: str) -> Reply:
    """The verdict of a reply that follows the schema; a reply that does not has none."""
    try:
        found = parse(text)
    except Malformed as error:
        return Reply.failed("against the schema", str(error))
    if not isinstance(found, dict) or found.keys() != {"winner", "reason"}:
        return Reply.failed("against the schema", "not an object with winner and reason alone")
    winner, reason = found["winner"], found["reason"]
    if not isinstance(winner, str) or winner not in WINNERS or not isinstance(reason, str):
        return Reply.failed("against the schema", "winner is A, B or tie, and reason is text")
    return Reply(WINNERS[winner], note=reason[:LONGEST_REASON])
