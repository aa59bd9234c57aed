"""[export]: where the result should run, decided before anything is trained.

Owns the fields and their meanings. Must not know formats (`engine.export`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section


class Destination(StrEnum):
    HF = "hf"
    """A folder for transformers, vLLM and everything that reads it."""
    GGUF = "gguf"
    """One file for llama.cpp, LM Studio, KoboldCpp."""
    OLLAMA = "ollama"
    """The same with a Modelfile."""


GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""Largest first. The k-quants are made by llama.cpp's own quantiser."""


class ExportSection(Section, frozen=True, kw_only=True):
    to: Annotated[
        tuple[Destination, ...],
        Meta(
            description="hf, gguf, ollama: written when the job is done. What a target cannot represent is refused "
            "before the start."
        ),
    ] = ()
    gguf_types: Annotated[
        tuple[str, ...], Meta(description="Sizes of the GGUF file: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m.")
    ] = ("q8_0",)
    adapter: Annotated[
        bool, Meta(description="gguf and ollama: export the adapter beside its base instead of a merged model.")
    ] = False
    verify: Annotated[
        bool, Meta(description="Compare with transformers where llama-cpp-python is installed; about a minute.")
    ] = True
