"""llama.cpp's types of tokens, and the refusal of a tokenizer that it would read differently."""

from __future__ import annotations

from engine.errors import EngineError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""


def unlike_llama_cpp(why: str) -> EngineError:
    """The caller raises it."""
    return EngineError(
        "export.tokenizer",
        "This tokenizer cannot be written to a GGUF file here.",
        cause=f"llama.cpp would read it differently: {why}.",
        next_step="Use llama.cpp's own convert_hf_to_gguf.py for this model.",
    )
