"""The certificate `expansion.json`: what was done to the model, and what was measured of the result.

Owns the file's types; it is written beside the weights and read by undo, by training what was grown, and by the
wizard's proof screen. Must not know torch. Fields are only added, never renamed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

CERTIFICATE_NAME = "expansion.json"
CERTIFICATE_VERSION = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A section of the certificate."""


class TensorEntry(_Part, frozen=True, kw_only=True):
    """Provenance of one output tensor."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    operators: tuple[str, ...] = ()
    """Empty for a byte-for-byte copy."""
    sources: tuple[str, ...] = ()
    new: bool = False
    new_spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Per axis, half-open ranges of new entries; an element is new when one of its entries is."""


class FileEntry(_Part, frozen=True, kw_only=True):
    """One file of the output."""

    name: str
    size_bytes: int
    sha256: str


class Liveness(_Part, frozen=True, kw_only=True):
    """Whether new capacity can learn."""

    checked: bool = False
    alive: bool = False
    new_tensors: int = 0
    dead: tuple[str, ...] = ()
    """New tensors (or slices) with no gradient at step 0 nor at step 1."""
    twins: tuple[str, ...] = ()
    """Tensors with two new coordinates of equal value and equal gradient."""
    reason: str = ""
    """Why it was not checked."""


class Drift(_Part, frozen=True, kw_only=True):
    """Logits against the source's in float32; relative to the range (max - min) of the source's logits."""

    max_abs_logit_diff: float
    mean_abs_logit_diff: float
    max_rel_logit_diff: float
    mean_kl: float
    """Nats per token."""
    top1_agreement: float


class Proof(_Part, frozen=True, kw_only=True):
    """What was measured. `passed` decides whether the output gets its name."""

    passed: bool
    exact_claimed: bool
    reason: str = ""
    """Why it failed, or what could not be measured."""
    text: str = ""
    """The text it was measured on."""
    tokens: int = 0
    method: str = ""
    """ "whole" (both models in memory) or "layer by layer" (streamed)."""
    float32: Drift | None = None
    """The stored output against the source, both computed in float32."""
    arithmetic: Drift | None = None
    """The same with rounded tensors replaced by their unrounded values; only where storage had to round."""
    bfloat16: Drift | None = None
    """The output in bfloat16 against the source in float32."""
    bfloat16_source: Drift | None = None
    """The source's own bfloat16 noise: the source in bfloat16 against the source in float32."""
    generation_tokens: int = 0
    generation_identical: bool | None = None
    """Greedy, with KV cache, output against source."""
    reloaded: bool | None = None
    """Loaded from disk by plain AutoModelForCausalLM with equal logits."""
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    liveness: Liveness = Liveness()
    versions: dict[str, str] = {}
    """Of the libraries it was measured with."""
    seconds: float = 0.0


class Certificate(_Part, frozen=True, kw_only=True):
    """`expansion.json`."""

    version: int = CERTIFICATE_VERSION
    source: str
    source_files: tuple[FileEntry, ...] = ()
    """What was read. Of a weight file the hash covers its header only: names, types, shapes, offsets."""
    created: str = ""
    program: str = ""
    """ "scaler-wizard 0.1.0"; library versions follow in `versions`."""
    versions: dict[str, str] = {}
    plan: dict[str, Any] = {}
    """The plan as a tree: `engine.expansion.plan_io` reads and writes it."""
    operators: dict[str, str] = {}
    """Axis -> operator, with what it does not preserve in `notes`."""
    exact: bool = True
    parameters_before: int = 0
    parameters_after: int = 0
    notes: tuple[str, ...] = ()
    tensors: dict[str, TensorEntry] = {}
    files: tuple[FileEntry, ...] = ()
    undo: dict[str, Any] = {}
    """Values of small tensors as they were, so that an undo is bit for bit."""
    proof: Proof | None = None
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    bytes_written: int = 0


def read_certificate(folder: Path) -> Certificate | None:
    """The certificate in a model folder; None when there is none. Raises msgspec.MsgspecError when damaged."""
    path = folder / CERTIFICATE_NAME
    if not path.is_file():
        return None
    return msgspec.json.decode(path.read_bytes(), type=Certificate)


def encode_certificate(certificate: Certificate) -> bytes:
    """The file's bytes, indented."""
    return msgspec.json.format(msgspec.json.encode(certificate), indent=1) + b"\n"
