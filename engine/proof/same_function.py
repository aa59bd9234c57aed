"""Do two folders compute the same function: logits, cached generation, a second load, and what each layer adds.

Owns the measurements and the verdict. Must not know how either folder was made: grown, merged, packed or exported, the
question is the same. One model is in memory at a time, the first one first.

    first: logits (kept), layers (kept), generation, bfloat16 where needed    second: the same, and a second load
"""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from engine.errors import EngineError
from engine.expansion.certificate import Drift
from engine.jobs.events import DriftReport
from engine.jobs.function_report import DIFFERENT, ROUNDING, SAME, FunctionReport, LayerDrift
from engine.proof import skeleton
from engine.proof.drift import logit_drift, perplexity, require_numbers
from engine.proof.gate import LARGEST_RELATIVE_DIFFERENCE, SAME_LOGITS
from engine.proof.generation import Continuation, first_difference, generate
from engine.proof.opened import Memory, Opened
from engine.proof.progress import Report, silent
from engine.proof.sides import Side, must_stream, open_side, side_of
from engine.proof.text import ProofText, proof_text

TOKENS = 256
GENERATED_TOKENS = 48
LAYER_TOKENS = 128
"""Positions whose values after every layer are kept of the first model."""
ROUNDING_FACTOR = 2.0
"""Weights and activations are rounded separately; the first model in bfloat16 shows one of the two where its weights
are stored in 16 bits already."""

UNSTEADY = "The second folder, loaded once more, gives other logits: it computes no one function."


@dataclass(frozen=True, slots=True)
class FunctionRequest:
    """Which two folders, and on what."""

    first: Path
    second: Path
    base: Path | None = None
    """Of adapters whose own base is not here."""
    text: Path | None = None
    tokens: int | None = None
    quantization: str = "none"
    """Pack the second model so while loading it."""
    tolerance: float | None = None
    """Of logits, relative to their range; given, it alone decides, and what 16 bits explain is no excuse. None is 1e-4,
    or that rounding."""
    memory_bytes: int | None = None

    @property
    def allowed(self) -> float:
        """Largest relative difference of logits that counts as the same."""
        return LARGEST_RELATIVE_DIFFERENCE if self.tolerance is None else self.tolerance


@dataclass(slots=True)
class _Heard:
    """What one model said."""

    logits: Tensor
    """(T, V)"""
    layers: list[Tensor] = field(default_factory=list)
    """After each layer: (t, D) float32."""
    continued: Continuation | None = None


@dataclass(slots=True)
class _Work:
    request: FunctionRequest
    sides: tuple[Side, Side]
    dtype: torch.dtype
    streamed: bool
    text: ProofText
    ids: Tensor
    """(1, T)"""
    report: Report
    notes: list[str] = field(default_factory=list)


def same_function(request: FunctionRequest, report: Report = silent) -> FunctionReport:
    """Measure and judge. Raises EngineError `verify.*` for folders that cannot be compared, `proof.*` for those that
    cannot be loaded."""
    began = time.monotonic()
    work = _prepare(request, report)
    first = _heard(work, work.sides[0], "first")
    second = _heard(work, work.sides[1], "second", reload=True)
    drift = logit_drift(first.logits, second.logits)
    found = _found(work, first, second, drift)
    return msgspec.structs.replace(
        found,
        notes=tuple(work.notes),
        seconds=time.monotonic() - began,
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    )


def _prepare(request: FunctionRequest, report: Report) -> _Work:
    skeleton.quiet()
    first = side_of(request.first, request.base)
    second = side_of(request.second, request.base, request.quantization)
    if not first.vocab or first.vocab != second.vocab:
        raise EngineError(
            "verify.vocabulary",
            "The two models have different vocabularies, so their logits cannot be compared.",
            cause=f"{request.first} has {first.vocab:,} tokens, {request.second} {second.vocab:,}.",
            next_step="Compare what they are worth instead: scaler-wizard eval B --against A",
        )
    dtype = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    tokens = max(min(request.tokens or TOKENS, first.longest, second.longest), 2)
    text = proof_text(first.base, first.vocab, tokens, request.text)
    kept = 3 * len(text.ids) * first.vocab * dtype.itemsize
    streamed = must_stream((first, second), dtype, Memory.measured(request.memory_bytes), kept)
    work = _Work(request, (first, second), dtype, streamed, text, torch.tensor([text.ids]), report)
    if request.tokens is not None and request.tokens > len(text.ids):
        longest = min(first.longest, second.longest)
        why = f"the models' window has {longest:,}" if len(text.ids) >= longest else "the text has no more"
        work.notes.append(f"Compared on {len(text.ids):,} tokens, not on {request.tokens:,}: {why}.")
    if _tokenizer_of(first) != _tokenizer_of(second):
        work.notes.append("Their tokenizer.json differ: the same ids may be other text.")
    return work


def _tokenizer_of(side: Side) -> bytes:
    file = next((f for f in (side.folder / "tokenizer.json", side.base / "tokenizer.json") if f.is_file()), None)
    return b"" if file is None else file.read_bytes()


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _heard(work: _Work, side: Side, whose: str, *, reload: bool = False) -> _Heard:
    with open_side(side, work.dtype, work.streamed) as model:
        work.report(whose, 0, 1, f"The {whose} model reads the text")
        with _after_layers(model) as layers:
            logits = model.logits(work.ids)
        require_numbers(logits, whose)
        heard = _Heard(logits, layers)
        if not work.streamed:
            work.report(f"{whose} generation", 0, 1, f"The {whose} model writes with a KV cache")
            heard.continued = generate(model.model, _prompt(work), GENERATED_TOKENS)
    return heard


def _prompt(work: _Work) -> Tensor:
    longest = min(side.longest for side in work.sides)
    return work.ids[:, : max(min(work.ids.shape[1] // 2, longest - GENERATED_TOKENS), 1)]


@contextmanager
def _after_layers(model: Opened) -> Iterator[list[Tensor]]:
    """The residual stream after each decoder layer of the next pass; empty where the model has no list of layers."""
    base = model.model.get_base_model() if hasattr(model.model, "get_base_model") else model.model
    kept: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output  # (1, T, D)
        kept.append(hidden[0, :LAYER_TOKENS].detach().float().clone())

    try:
        layers = list(skeleton.decoder_layers(base)[1])
    except EngineError:
        layers = []
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _reloaded(work: _Work, logits: Tensor) -> bool:
    """Whether the second folder, opened once more, computes `logits`."""
    work.report("reload", 0, 1, "The second model is loaded once more")
    with open_side(work.sides[1], work.dtype, work.streamed) as model:
        again = model.logits(work.ids)
    return torch.equal(again, logits) or logit_drift(logits, again).max_rel_logit_diff <= SAME_LOGITS


def _own_rounding(work: _Work, reference: Tensor) -> Drift | None:
    """The first model in bfloat16; None for packed weights, which have a type of their own to compute in."""
    if work.sides[0].packed:
        return None
    work.report("rounding", 0, 1, "The first model reads the text in bfloat16")
    with open_side(work.sides[0], torch.bfloat16, work.streamed) as model:
        logits = model.logits(work.ids)
    return logit_drift(reference, logits) if bool(torch.isfinite(logits).all()) else None


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _found(work: _Work, first: _Heard, second: _Heard, drift: Drift) -> FunctionReport:
    parted = None
    if first.continued is not None and second.continued is not None:
        parted = first_difference(first.continued, second.continued)
    else:
        work.notes.append("Generation was not tried: the models are larger than memory.")
    small = drift.max_rel_logit_diff <= work.request.allowed
    tie = small and parted is not None and parted[1] <= 2 * drift.max_abs_logit_diff
    same = small and (parted is None or tie)
    rounding = None if same else _own_rounding(work, first.logits)
    excused = work.request.tolerance is None and _is_rounding(drift, rounding)
    reloaded = _reloaded(work, second.logits)
    verdict = DIFFERENT if not reloaded else SAME if same else ROUNDING if excused else DIFFERENT
    layers, note = _layer_drifts(first.layers, second.layers)
    ids = work.ids[0]
    return FunctionReport(
        first=str(work.request.first),
        second=str(work.request.second),
        first_kind=work.sides[0].kind,
        second_kind=work.sides[1].kind,
        verdict=verdict,
        words=_words(verdict, drift, rounding, layers) if reloaded else UNSTEADY,
        text=work.text.origin,
        tokens=len(work.text.ids),
        method="layer by layer" if work.streamed else "whole",
        tolerance=work.request.allowed,
        logits=_told(drift),
        identical=torch.equal(first.logits, second.logits),
        own_rounding=None if rounding is None else _told(rounding),
        generation_tokens=0 if first.continued is None else first.continued.ids.numel(),
        generation_identical=None if first.continued is None else parted is None,
        generation_tie=tie,
        parted_at=-1 if parted is None else parted[0],
        reloaded=reloaded,
        perplexity_first=perplexity(first.logits, ids),
        perplexity_second=perplexity(second.logits, ids),
        layers=layers,
        layers_note=note,
    )


def _is_rounding(drift: Drift, own: Drift | None) -> bool:
    return own is not None and (
        drift.max_rel_logit_diff <= ROUNDING_FACTOR * own.max_rel_logit_diff
        and drift.mean_kl <= ROUNDING_FACTOR * own.mean_kl
    )


def _told(drift: Drift) -> DriftReport:
    return msgspec.convert(msgspec.to_builtins(drift), DriftReport)


def _layer_drifts(first: list[Tensor], second: list[Tensor]) -> tuple[tuple[LayerDrift, ...], str]:
    if not first or not second:
        return (), "Layers were not compared: the model has no plain list of them."
    if len(first) != len(second) or first[0].shape != second[0].shape:
        sizes = [f"{len(one)} layers of width {one[0].shape[-1]}" for one in (first, second)]
        return (), f"Layers were not compared: the first model has {sizes[0]}, the second {sizes[1]}."
    return tuple(_layer_drift(index, *pair) for index, pair in enumerate(zip(first, second, strict=True))), ""


def _layer_drift(index: int, first: Tensor, second: Tensor) -> LayerDrift:
    a, b = first.double(), second.double()  # (t, D)
    extent = float(a.max() - a.min())
    size = float(a.square().mean().sqrt())
    difference = (a - b).abs()
    return LayerDrift(
        layer=index,
        largest=float(difference.max()) / extent if extent > 0 else float(difference.max()),
        mean=float(difference.square().mean().sqrt()) / size if size > 0 else float(difference.max()),
    )


def _words(verdict: str, drift: Drift, rounding: Drift | None, layers: tuple[LayerDrift, ...]) -> str:
    size = f"{drift.max_rel_logit_diff:.1e}"
    if verdict == SAME:
        return (
            "The logits are equal bit for bit."
            if drift.max_abs_logit_diff == 0
            else (f"They compute the same function: logits differ by at most {size} of their range.")
        )
    if verdict == ROUNDING:
        assert rounding is not None
        return (
            f"They compute the same function up to rounding: logits differ by at most {size} of their range; "
            f"16 bits alone change the first model by {rounding.max_rel_logit_diff:.1e}."
        )
    where = next((f" from layer {one.layer} on" for one in layers if one.largest > LARGEST_RELATIVE_DIFFERENCE), "")
    kl = drift.mean_kl if math.isfinite(drift.mean_kl) else math.inf
    return (
        f"They compute different functions{where}: logits differ by up to {size} of their range, by {kl:.2g} nats per "
        f"token, and name the same next token in {drift.top1_agreement:.1%} of places."
    )
