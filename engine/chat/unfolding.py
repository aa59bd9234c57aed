"""Tokens to text while they come: only whole characters, and the text of all tokens at the end.

Owns that a character whose bytes are spread over several tokens appears once it is complete. Must not know models.
"""

from __future__ import annotations

from engine.data.tokenizer import ChatTokenizer

_BROKEN = "�"
_CONTEXT_TOKENS = 8
"""Tokens before the new ones that are decoded with them: spaces between words depend on what stands before."""


class Unfolding:
    """The text of an answer as its tokens are added."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = 0
        """Tokens whose text was given out."""

    def add(self, token: int) -> str:
        """The text that this token completes; often "", when it is a part of a character."""
        self._ids.append(token)
        begin = max(self._told - _CONTEXT_TOKENS, 0)
        before = self._decoded(self._ids[begin : self._told])
        now = self._decoded(self._ids[begin:])
        if now.endswith(_BROKEN) or not now.startswith(before):
            return ""
        self._told = len(self._ids)
        return now[len(before) :]

    @property
    def text(self) -> str:
        """All of it."""
        return self._decoded(self._ids)

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
