"""What one model is asked so that another program's answers can be held against it, and where its answers lie.

Owns both shapes, and what follows from two sets of answers. Must not know torch, nor the programs: transformers
(`engine.evaluation.sayings`) and llama.cpp (a script of `engine.export`) answer the same questions.

Dims: T tokens, V vocabulary, K kept positions. Answers lie in one .npz: for question i its `prompt/i` and `answer/i`
ids, `top/i` (T) the most likely next token after each position of both, `logits/i` (K, V) of the last positions; for
passage i `nll/i` (T-1) nats per token; for text i its `text/i` ids. A program whose file says by itself where answers
end adds `ends`, those ids.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

KEPT_BYTES = 192 << 20
"""Of logits, over all questions."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The questions."""

    chats: tuple[tuple[dict[str, str], ...], ...]
    """Turns, the user's last; an answer is asked for."""
    rendered: tuple[str, ...]
    """Each chat through this program's own copy of the template; used where the model brings none."""
    has_template: bool
    texts: tuple[str, ...]
    """Cut into tokens by both."""
    passages: tuple[tuple[int, ...], ...]
    """Token ids whose perplexity is taken."""
    stops: tuple[int, ...]
    """Tokens that end an answer."""
    unnamed_stops: tuple[int, ...] = ()
    """Those of them for which a GGUF file has no key; it says so when it is written."""
    new_tokens: int
    vocabulary: int
    """Of the model's output."""
    passages_from: str = ""
    """In words."""

    @property
    def kept(self) -> int:
        """Positions per question whose logits are kept."""
        return max(2, KEPT_BYTES // (4 * self.vocabulary * max(len(self.chats), 1)))


def write_asked(path: Path, asked: Asked) -> None:
    """As JSON, for either program."""
    path.write_bytes(msgspec.json.encode(asked))


def read_asked(path: Path) -> Asked:
    """What `write_asked` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Asked)
