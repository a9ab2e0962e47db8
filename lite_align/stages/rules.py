"""Rules that reward an answer for what can be read off its text; a recipe says `rules: {repetition: 0.5}`.

A rule is one decorated pure function of an episode; one with an argument takes it after a colon: `words:80`. The
first line of its docstring is what people read about it.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import regex

from lite_align.errors import RecipeError
from lite_align.evaluate.text import repeated_ngrams
from lite_align.stages.episodes import Episode, Errors, NoReward

REGEX_SECONDS = 1.0
"""A search may take so long: the time of some patterns grows exponentially with the text."""

_NUMBER = regex.compile(r"(?<![\d.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", regex.ASCII)
_SOLUTION = "####"  # GSM8K writes it before the number at the end of a solution
_AROUND = " \t\n.,;:!?\"'*()[]{}$%"


@dataclass(frozen=True)
class Argument:
    """What stands after the colon: how messages call it, and how it is read (ValueError: it is none)."""

    name: str
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Rule:
    """One row of the catalogue; `function` takes an episode and the argument, if there is one."""

    name: str
    function: Callable[..., float]
    argument: Argument | None
    summary: str

    @property
    def form(self) -> str:
        """How a recipe writes it: "words:COUNT"."""
        return f"{self.name}:{self.argument.name}" if self.argument else self.name


RULES: dict[str, Rule] = {}


def rule(argument: Argument | None = None) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Put a function into the catalogue under its own name."""

    def add(function: Callable[..., float]) -> Callable[..., float]:
        name = function.__name__
        if name in RULES:
            raise ValueError(f"a rule named {name} exists already")
        RULES[name] = Rule(name, function, argument, (inspect.getdoc(function) or "").partition("\n")[0])
        return function

    return add


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError("a whole number above 0")
    return int(text)


def _text(text: str) -> str:
    if not text:
        raise ValueError("not empty")
    return text


def _regex(text: str) -> "regex.Pattern[str]":
    try:
        return regex.compile(_text(text))
    except regex.error as error:
        raise ValueError(f"a regular expression ({error})") from error


@rule()
def stopped(episode: Episode) -> float:
    """1 if the answer ended by itself, 0 if it was cut."""
    return float(episode.stopped)


@rule()
def repetition(episode: Episode) -> float:
    """Minus the share of word triples that occurred earlier in the answer: 0 to -1."""
    return -repeated_ngrams(episode.answer, 3)


@rule(Argument("COUNT", _count))
def words(episode: Episode, most: int) -> float:
    """0 up to COUNT words, then falling to -1 at a quarter more.

    The ramp of DAPO (arXiv 2503.14476, eq. 13) in words, with its own proportion: 16,384 tokens are free, and the
    penalty is full 4,096 later.
    """
    over = len(episode.answer.split()) - most
    return -min(max(over / (most / 4), 0.0), 1.0)


@rule(Argument("TEXT", _text))
def contains(episode: Episode, text: str) -> float:
    """1 if TEXT occurs in the answer, upper and lower case alike, else 0."""
    return float(text.casefold() in episode.answer.casefold())


@rule(Argument("REGEX", _regex))
def matches(episode: Episode, pattern: "regex.Pattern[str]") -> float:
    """1 if REGEX is found anywhere in the answer, else 0; a search of over a second is an error of that answer."""
    try:
        return float(pattern.search(episode.answer, timeout=REGEX_SECONDS) is not None)
    except TimeoutError as error:
        raise NoReward(f"took over {REGEX_SECONDS:g} s", f'the search for "{pattern.pattern}"') from error


@rule(Argument("COLUMN", _text))
def equals(episode: Episode, column: str) -> float:
    """1 if the answer ends with what the row's COLUMN says, as a number if that is one, else 0.

    Of a solution as in GSM8K, what follows the last `####` counts, in the column and in the answer. Numbers: the last
    one of the answer is compared ("It costs $1,250.00." equals 1250). Texts: case and punctuation around them do not
    count, and a word must match as a whole.
    """
    value = episode.row.get(column, "")
    told = "" if value is None or isinstance(value, list | dict) else str(value)
    solution, answer = (text.rpartition(_SOLUTION)[2].strip(_AROUND) for text in (told, episode.answer))
    if not solution:
        raise NoReward("without a solution", f'the row has no text or number in "{column}"')
    if _NUMBER.fullmatch(solution):
        numbers = _NUMBER.findall(answer)
        return float(bool(numbers) and _decimal(numbers[-1]) == _decimal(solution))
    end = answer.casefold().removesuffix(solution.casefold())
    whole = not end or not (end[-1].isalnum() and solution[:1].isalnum())
    return float(len(end) < len(answer.casefold()) and whole)


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


class RuleReward:
    """The source "rule/WRITTEN": one rule with its weight.

    Args:
        written: as in the recipe, "words:80".
        weight: in the sum of rewards.

    Raises:
        RecipeError: no such rule (the nearest is named), or its argument does not fit.
    """

    def __init__(self, written: str, *, weight: float) -> None:
        self.name = f"rule/{written}"
        self.weight = weight
        self.errors = Errors(f"rule {written}")
        self._value = find(written)

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """The value of each answer; None, counted, where the rule cannot tell."""
        return [self._of(episode) for episode in episodes]

    def close(self) -> None:
        """A rule holds nothing."""

    def _of(self, episode: Episode) -> float | None:
        try:
            return self._value(episode)
        except NoReward as error:
            self.errors.add(error)
            return None


def find(written: str) -> Callable[[Episode], float]:
    """The rule that a recipe names, with its argument; RecipeError says what is wrong with it."""
    name, colon, argument = written.partition(":")
    where = f'ppo.rules: "{written}"'
    known = f"The rules are {', '.join(rule.form for rule in RULES.values())}."
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1)
        what = f"{where} is no rule." + "".join(f" Did you mean {RULES[n].form}?" for n in near)
        raise RecipeError(what, remedy=known)
    found = RULES[name]
    if found.argument is None:
        if colon:
            raise RecipeError(f"{where}: {name} takes nothing after it.", remedy=known)
        return found.function
    try:
        value = found.argument.read(argument)
    except ValueError as error:
        wanted = f"{found.argument.name} must be {error}, as in {found.form}"
        raise RecipeError(f"{where}: {wanted}.", remedy=known) from error
    return lambda episode: found.function(episode, value)
