"""The lines a race of scaling methods and a search of factors print while they work: one JSON object each.

Owns the shape of these lines; `engine.rotary` prints them, `extend --race --json-lines` passes them on, screens fold
them. The same lines are the race's log, so a reader may meet a row twice: the newest of a method counts.
An error is a line of its own, as every command prints it: {"error": {"code": ..., "what": ...}}.
Must not know torch, nor how anything is measured. Kinds and fields are only added; readers skip what they do not know.
"""

from __future__ import annotations

import msgspec

from engine.jobs.length_report import LengthReport


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One line."""


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """A method, and why it does not take part."""

    method: str
    title: str
    why_not: str = ""
    """ "" for one that runs."""
    needs_search: bool = False
    """Only a search is missing for it to take part."""


class RaceStarted(_Line, frozen=True, kw_only=True, tag="race.started"):
    """What will be measured; the first line."""

    model: str
    original: int
    target: int
    contenders: tuple[Contender, ...]
    """In the order they run."""
    lengths: tuple[int, ...] = ()
    """Of the perplexity, tokens."""
    needle_lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = ()
    rule: str = ""
    """How the best is picked, in one sentence."""
    text: str = ""
    seed: int = 0
    documents: int = 0
    """Texts that perplexity is measured on."""
    prompts: int = 0
    """Needles per length and depth."""
    style: str = ""
    """How needles are asked."""
    fingerprint: str = ""
    """Of model, text and number type: figures of another race are not this one's."""


class RaceProgress(_Line, frozen=True, kw_only=True, tag="race.progress"):
    """What is being measured right now."""

    method: str
    what: str = ""
    """ "perplexity", "needles", "short text"."""
    done: int = 0
    total: int = 0
    """Over the whole race, in whatever it counts; 0 where it cannot be counted."""
    eta_seconds: float | None = None


class RaceRow(_Line, frozen=True, kw_only=True, tag="race.row"):
    """A method's figures so far; complete or not."""

    method: str
    report: LengthReport
    complete: bool = True
    seconds: float = 0.0
    problem: str = ""
    """Why it could not be measured; "" when it was."""
    applied: str = ""
    """Names divisors, m and options that the method was measured with; "" for the untouched model."""


class RaceDecided(_Line, frozen=True, kw_only=True, tag="race.decided"):
    """The winner; the last line of a race."""

    method: str
    """ "" where none is good enough."""
    reason: str
    """What the rule saw, in one or two sentences."""
    ranking: tuple[str, ...] = ()
    """Methods, the best first."""
    rule: str = ""
    seconds: float = 0.0


class SearchStarted(_Line, frozen=True, kw_only=True, tag="search.started"):
    """What will be searched."""

    method: str
    evaluations: int
    documents: int = 0
    length: int = 0
    critical_pair: int = 0
    """The first pair that is searched."""
    pairs: int = 0
    seeds: tuple[str, ...] = ()
    eta_seconds: float | None = None
    """From one timed evaluation."""
    candidates: tuple[int, ...] = ()
    """Critical pairs that are tried; `critical_pair` is the first of them."""
    weight: float = 0.0
    needles: bool = True
    """Whether needles count; else the closing tokens alone do."""


class SearchStep(_Line, frozen=True, kw_only=True, tag="search.step"):
    """One evaluated set of factors."""

    evaluation: int
    """From 1."""
    score: float
    """Lower is better."""
    best: float
    """The lowest so far, this one included."""
    needle_nll: float | None = None
    perplexity: float | None = None
    """The two objectives of this set."""
    origin: str = ""
    """ "seed yarn", "mutation", "crossover"."""
    divisors: tuple[float, ...] = ()
    """Of the best so far, one per pair; empty where it is the same as before."""
    eta_seconds: float | None = None


class SeedScore(msgspec.Struct, frozen=True, kw_only=True):
    """A known method on the search's own objective."""

    name: str
    score: float
    needle_nll: float
    perplexity: float


class SearchDone(_Line, frozen=True, kw_only=True, tag="search.done"):
    """The best that was found."""

    best: float
    best_seed: float
    """The best score among the seeds; the search never ends above it."""
    best_seed_name: str = ""
    divisors: tuple[float, ...] = ()
    needle_nll: float | None = None
    perplexity: float | None = None
    evaluations: int = 0
    seconds: float = 0.0
    method: str = ""
    critical_pair: int = 0
    """0 where the best is a known method's whole curve, or where every pair was searched."""
    attention_factor: float = 1.0
    origin: str = ""
    """Where the best came from: "seed yarn", "start", "mutation", "crossover"."""
    weight: float = 0.0
    """score = needle_nll + weight x ln(perplexity); ln(perplexity) alone where needles do not count."""
    needles: bool = True
    seeds: tuple[SeedScore, ...] = ()
    """Both objectives of every known method, to compare the best's with."""


Line = RaceStarted | RaceProgress | RaceRow | RaceDecided | SearchStarted | SearchStep | SearchDone
_KINDS = frozenset(kind.__struct_config__.tag for kind in Line.__args__)


class _Kind(msgspec.Struct):
    kind: str = ""


def encode_line(line: Line) -> bytes:
    """JSON and a newline."""
    return msgspec.json.encode(line) + b"\n"


def decode_line(text: bytes | str) -> Line | None:
    """The line; None for another program's words and for kinds of a later version."""
    try:
        if msgspec.json.decode(text, type=_Kind).kind not in _KINDS:
            return None
        line: Line = msgspec.json.decode(text, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return line
