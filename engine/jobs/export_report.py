"""What an export wrote and what was proven of it, as data for cards, screens and JSON.

Owns the shape. Must not know formats.
"""

from __future__ import annotations

import msgspec


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """One file in its own runtime against transformers on the same prompts, template and stop tokens."""

    runtime: str
    """ "llama.cpp 0.3.36", "transformers 5.23.0"."""
    prompts: int
    tokens_compared: int
    """Positions of prompts and greedy answers."""
    same_top_token: float
    """Share of the positions at which both name the same next token, 0 to 1."""
    first_difference: int
    """The earliest position of an answer at which the texts part; -1 for none."""
    largest_logit_difference: float
    perplexity: float
    reference_perplexity: float
    """Of transformers, same tokens."""
    perplexity_tokens: int = 0
    """Tokens of held-out text that both perplexities are means over; 0 where it was not written down."""
    same_tokens: bool
    """Whether both tokenizers cut the texts alike."""
    same_prompt: bool
    """Whether both chat templates give the same tokens."""
    stops: bool
    """Whether generation ended at a stop token by itself, where the reference's did."""
    ended: int = 0
    """Answers that ended at a stop token in both."""
    reference_ended: int = 0
    """Answers that ended at one in the reference."""
    missing_stops: tuple[int, ...] = ()
    """Stop tokens of the model at which the runtime would run on."""
    foreign_stops: tuple[int, ...] = ()
    """Tokens of the reference's answers at which the runtime ends, and the model does not."""
    seconds: float = 0.0

    @property
    def perplexity_change(self) -> float:
        """0.02 for 2 % worse than the reference."""
        return self.perplexity / self.reference_perplexity - 1 if self.reference_perplexity else 0.0

    @property
    def ended_words(self) -> str:
        """How many answers ended by themselves: "1 of the 3 answers that ended in transformers did not end here"."""
        if not self.reference_ended:
            return f"no answer of the {self.prompts} ended at a stop token in transformers, so none could here"
        lost = self.reference_ended - self.ended
        return f"{lost} of the {self.reference_ended} answers that ended in transformers did not end here"


class ExportedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file or folder under its final name."""

    path: str
    size_bytes: int
    kind: str
    """ "f16", "q4_k_m", "hf", "modelfile", "adapter"."""
    sha256: str = ""
    agreement: Agreement | None = None
    """None where the runtime is not installed, or nothing was asked."""
    not_verified: str = ""
    """Why there is no agreement, in words."""


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """One export."""

    destination: str
    """ "hf", "gguf", "ollama"."""
    source: str
    files: tuple[ExportedFile, ...]
    flags: tuple[str, ...] = ()
    """What the target represents only in part, in words."""
    next_step: str = ""
    """A command that uses it: "ollama create NAME -f ..."."""
    seconds: float = 0.0
