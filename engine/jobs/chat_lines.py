"""The lines that a front end and the process of a chat exchange: one JSON object each, both ways.

Owns the shape of these lines. The front end writes `Open`, then `Ask`, `Show` and `Stop`; the process answers with the
others until its standard input ends. Must not know torch, nor how an answer is made. Kinds and fields are only added;
readers skip what they do not know.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MOST_SIDES = 6
"""Models or adapters that are asked together."""
SEEDS = 2**63
"""A seed is below this."""


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    """ "system", "user" or "assistant"."""
    content: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. The same seed begins every answer, on every side."""

    seed: int = 17
    temperature: float = 0.7
    """0: always the likeliest token, and the seed does not matter."""
    top_p: float = 0.95
    """Only the likeliest tokens that together have this probability; 1 is all."""
    max_new_tokens: int = 256

    @property
    def words(self) -> str:
        """In short."""
        if self.temperature == 0:
            return f"temperature 0 (the likeliest token), at most {self.max_new_tokens} tokens"
        return (
            f"seed {self.seed}, temperature {self.temperature:g}, top-p {self.top_p:g}, "
            f"at most {self.max_new_tokens} tokens"
        )


class SideOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One model or adapter to talk to."""

    name: str
    """As people know it: "base", a run's id, a folder's name."""
    folder: str
    """A model's folder, or an adapter's where there is a `base`."""
    base: str = ""
    """The folder of the base under an adapter."""
    quantization: str = "none"
    """ "none", "nf4" or "fp4": of the model, or of the base under the adapter."""
    double_quantization: bool = True
    notes: tuple[str, ...] = ()
    """What was chosen for it, for people: "checkpoint of step 40"."""

    @property
    def model(self) -> str:
        """The folder whose weights are loaded."""
        return self.base or self.folder


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An EngineError as data."""

    code: str
    what: str
    cause: str = ""
    next_step: str = ""


class SideFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a side turned out to be."""

    template: str
    """The chat template's text."""
    template_origin: str
    """The file it came from, or "built-in default"."""
    template_is_default: bool
    window: int
    """Tokens that prompt and answer share; 0 where the config does not say."""
    stop_tokens: tuple[str, ...]
    weights: str
    """ "float32", "bfloat16", "nf4, computing in float32"."""
    shares: bool = False
    """Whether its weights are also another side's, so that it took no memory for a model of its own."""
    notes: tuple[str, ...] = ()


# ── what the front end says ──────────────────────────────────────────────────────────────────────────────────────
class _Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One line to the process."""


class Open(_Request, frozen=True, kw_only=True, tag="open"):
    """Load these; the first line. `Ready` follows when all are loaded or refused."""

    sides: tuple[SideOrder, ...]
    dtype: str = "auto"
    """ "auto", "float32", "bfloat16" or "float16"."""
    threads: int = 0
    """Of the processor; 0 is all of this machine's."""


class Ask(_Request, frozen=True, kw_only=True, tag="ask"):
    """Answer; side after side. Per side: `Sent`, `Piece`s, then `Answered` or `Failed`; at last `AllAnswered`."""

    ask: int
    """A number of the front end's, repeated in what follows."""
    turns: tuple[tuple[Turn, ...], ...]
    """The conversation of each side; an empty one leaves the side out."""
    sampling: Sampling = Sampling()


class Show(_Request, frozen=True, kw_only=True, tag="show"):
    """Only say what would be sent: a `Sent` per side, with `ask` as its number."""

    ask: int
    turns: tuple[tuple[Turn, ...], ...]


class Stop(_Request, frozen=True, kw_only=True, tag="stop"):
    """End the answers under way; what they have so far counts."""


Request = Open | Ask | Show | Stop


# ── what the process says ────────────────────────────────────────────────────────────────────────────────────────
class _News(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One line of the process."""


class Loading(_News, frozen=True, kw_only=True, tag="loading"):
    """How far loading is."""

    words: str
    done: int = 0
    total: int = 0
    """Sides, over the whole loading."""


class SideReady(_News, frozen=True, kw_only=True, tag="side.ready"):
    """A side can be asked."""

    side: int
    facts: SideFacts


class SideRefused(_News, frozen=True, kw_only=True, tag="side.refused"):
    """A side could not be loaded; the others go on."""

    side: int
    problem: Problem


class Ready(_News, frozen=True, kw_only=True, tag="ready"):
    """Questions are taken from now on."""

    device: str
    """For people: the card, or the processor with its threads."""
    seconds: float


class Sent(_News, frozen=True, kw_only=True, tag="sent"):
    """The very text a side was given, special tokens included."""

    ask: int
    side: int
    text: str
    tokens: int
    special: tuple[str, ...] = ()
    """The special tokens that occur in it."""


class Piece(_News, frozen=True, kw_only=True, tag="piece"):
    """More of an answer."""

    ask: int
    side: int
    text: str
    tokens: int = 0
    """Of the answer so far."""


Ended = Literal["end", "length", "window", "stopped"]


class Answered(_News, frozen=True, kw_only=True, tag="answered"):
    """An answer is over."""

    ask: int
    side: int
    text: str
    """The whole of it; special tokens left out."""
    tokens: int
    """With the one that ended it."""
    prompt_tokens: int
    ended: Ended
    """By its end token, by max_new_tokens, by the model's window, or by the user."""
    seconds: float


class Failed(_News, frozen=True, kw_only=True, tag="failed"):
    """A side could not answer; the process goes on."""

    ask: int
    side: int
    problem: Problem


class AllAnswered(_News, frozen=True, kw_only=True, tag="all.answered"):
    """Nothing more comes for this question."""

    ask: int


News = Loading | SideReady | SideRefused | Ready | Sent | Piece | Answered | Failed | AllAnswered
_NEWS_KINDS = frozenset(str(kind.__struct_config__.tag) for kind in News.__args__)


class _Kind(msgspec.Struct):
    kind: str = ""


def encode(line: Request | News) -> bytes:
    """JSON and a newline."""
    return msgspec.json.encode(line) + b"\n"


def decode_news(text: bytes) -> News | None:
    """What the process said; None for other programs' words and for kinds of a later version."""
    try:
        if msgspec.json.decode(text, type=_Kind).kind not in _NEWS_KINDS:
            return None
        news: News = msgspec.json.decode(text, type=News)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return news


def decode_request(text: bytes) -> Request:
    """What the front end said. Raises msgspec.MsgspecError."""
    request: Request = msgspec.json.decode(text, type=Request)
    return request
