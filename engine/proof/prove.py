"""The measurements of a proof in their order, and the certificate's section that they make.

Owns the order (one model in memory at a time, the source first) and what is measured when. Must not know families.

    source: logits in float32 (kept), generation, bfloat16    grown: logits, generation, liveness, reload, bfloat16
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, ExitCode
from engine.expansion.certificate import Certificate, Drift, Liveness, Proof, read_certificate
from engine.expansion.packed import quantisation, weight_of
from engine.models.config import read_json_object
from engine.models.headers import Headers, read_headers
from engine.proof import skeleton
from engine.proof.drift import logit_drift, perplexity, require_numbers
from engine.proof.gate import SAME_LOGITS, Findings, judge
from engine.proof.generation import Continuation, first_difference, generate
from engine.proof.liveness import check_streamed, check_whole
from engine.proof.opened import Memory, Opened, opened, weights_bytes
from engine.proof.progress import Report, silent
from engine.proof.rounding import unrounded_tensors
from engine.proof.text import LONGEST_ROW, ProofText, proof_text
from engine.proof.weights import compute_dtype

GENERATED_TOKENS = 64
STREAMED_GENERATED = 16
"""For each of several prompts."""
STREAMED_TOKENS = 256
STREAMED_ELEMENTS_FOR_HALF = 2_000_000_000
STREAMED_PROMPTS = 8
GENERATION_SECONDS = 240.0
"""What streamed generation may take in all; a pass over a large model's files is needed for every token."""
FEWEST_GENERATED = 4
LARGEST_LOGITS_BYTES = 1 << 30
PACKED_LIVENESS = "Packed numbers have no gradients, so none were sent; adapters on the new blocks can be trained."


@dataclass(frozen=True, slots=True)
class ProofRequest:
    """Which two models, and on what."""

    source: Path
    grown: Path
    """A complete model folder with an `expansion.json`."""
    text: Path | None = None
    tokens: int | None = None
    memory_bytes: int | None = None
    """Instead of what is free."""


@dataclass(slots=True)
class Work:
    """A proof under way."""

    request: ProofRequest
    certificate: Certificate
    source: Headers
    grown: Headers
    dtype: torch.dtype
    streamed: bool
    memory: Memory
    text: ProofText
    ids: Tensor
    """(1, T)"""
    vocab: int
    longest: int
    """Positions that the model has."""
    report: Report
    packed: bool = False
    """Weights stay packed in both models: loaded whole, and nothing is compared in another type."""
    notes: list[str] = field(default_factory=list)
    generated: int = GENERATED_TOKENS


def prove(request: ProofRequest, report: Report = silent) -> Proof:
    """Measure the grown model against its source. Raises EngineError `proof.*` when nothing can be measured.

    A grown model that does not load or computes no numbers is a failed proof, not an error.
    """
    began = time.monotonic()
    work = _prepare(request, report)
    try:
        proof = _measure(work)
    except _Failed as failed:
        proof = Proof(passed=False, exact_claimed=work.certificate.exact, reason=failed.error.what)
        if failed.error.cause:
            proof = _with(proof, reason=f"{failed.error.what} {failed.error.cause}")
    return _with(
        proof,
        text=work.text.origin,
        tokens=len(work.text.ids),
        method="layer by layer" if work.streamed else "whole",
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        seconds=time.monotonic() - began,
    )


class _Failed(Exception):
    """The grown model itself is broken."""

    def __init__(self, error: EngineError) -> None:
        super().__init__(error.what)
        self.error = error


def _with(proof: Proof, **changes: Any) -> Proof:
    import msgspec

    return msgspec.structs.replace(proof, **changes)


def _prepare(request: ProofRequest, report: Report) -> Work:
    skeleton.quiet()
    certificate = read_certificate(request.grown)
    if certificate is None:
        raise EngineError(
            "proof.certificate",
            f"There is no expansion.json in {request.grown}.",
            cause="A proof needs to know what was done to the model.",
            next_step="Give the folder that `expand` wrote.",
        )
    source, grown = read_headers(request.source), read_headers(request.grown)
    dtype = torch.float64 if compute_dtype(source.tensors) == "float64" else torch.float32
    config = read_json_object(request.source / "config.json", code="proof.config", what="a config")
    packed = bool(quantisation(config))
    nested = config.get("text_config")
    config = {**config, **nested} if isinstance(nested, dict) else config
    vocab = int(config.get("vocab_size") or 0)
    if vocab <= 0:
        raise EngineError("proof.config", f"{request.source / 'config.json'} names no vocab_size.")
    memory = Memory.measured(request.memory_bytes)
    larger = max(weights_bytes(source, dtype), weights_bytes(grown, dtype))
    kept = 3 * LONGEST_ROW * vocab * dtype.itemsize
    streamed = not memory.holds(larger, kept)
    if packed and streamed:
        raise _too_large(request.grown)
    tokens = request.tokens or _tokens(grown, vocab, dtype, streamed)
    longest = int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30)
    text = proof_text(request.source, vocab, max(min(tokens, longest), 2), request.text)
    ids = torch.tensor([text.ids])
    return Work(request, certificate, source, grown, dtype, streamed, memory, text, ids, vocab, longest, report, packed)


def _too_large(folder: Path) -> EngineError:
    return EngineError(
        "proof.memory",
        f"{folder.name} does not fit into memory, so it cannot be proven.",
        cause="Packed models cannot be loaded layer by layer.",
        next_step="Close other programs, use a machine with more memory, or --no-proof.",
        exit_code=ExitCode.RUN_FAILED,
    )


def _tokens(grown: Headers, vocab: int, dtype: torch.dtype, streamed: bool) -> int:
    tokens = LONGEST_ROW
    if streamed:
        tokens = STREAMED_TOKENS if grown.elements < STREAMED_ELEMENTS_FOR_HALF else STREAMED_TOKENS // 2
    return max(min(tokens, LARGEST_LOGITS_BYTES // (vocab * dtype.itemsize)), 32)


def _measure(work: Work) -> Proof:
    request = work.request
    reference, source_text = _source(work)
    source_noise = _noise(work, reference, _in_bfloat16(work, request.source, "source"), "source")
    try:
        logits, grown_text, liveness = _grown(work)
        float32 = logit_drift(reference, logits)
        after = perplexity(logits, work.ids[0])
        half = _in_bfloat16(work, request.grown, "grown")
        reloaded = _reloaded(work, logits if half is None or not work.streamed else half)
        noise = _noise(work, reference, half, "grown")
        del logits, half
        arithmetic = _arithmetic(work, reference)
    except EngineError as error:
        raise _Failed(error) from error
    parted = first_difference(source_text, grown_text) if source_text and grown_text else None
    identical = None if source_text is None or grown_text is None else parted is None
    tie = parted is not None and parted[1] <= 2 * float32.max_abs_logit_diff
    passed, against = judge(Findings(work.certificate.exact, float32, arithmetic, identical, tie, reloaded, after))
    if tie and parted is not None:
        work.notes.append(
            f"Generation parts at token {parted[0]}, where the source's two best tokens are {parted[1]:.1e} apart."
        )
    return Proof(
        passed=passed,
        exact_claimed=work.certificate.exact,
        reason=" ".join((*against, *work.notes)),
        float32=float32,
        arithmetic=arithmetic,
        bfloat16=noise,
        bfloat16_source=source_noise,
        generation_tokens=0 if source_text is None else source_text.ids.numel(),
        generation_identical=identical,
        reloaded=reloaded,
        perplexity_before=perplexity(reference, work.ids[0]),
        perplexity_after=after,
        liveness=liveness,
    )


def _source(work: Work) -> tuple[Tensor, Continuation | None]:
    with opened(work.request.source, work.dtype, work.streamed, _layers(work, "source")) as model:
        work.report("source", 0, 1, "The source model reads the text")
        reference = model.logits(work.ids)
        require_numbers(reference, "source")
        if not work.certificate.exact:
            work.generated = 0
        elif work.streamed:
            work.generated = _affordable_tokens(work, model.model)
        if not work.generated:
            return reference, None
        continued = _continued(work, model.model, "source", _share(work) if work.streamed else math.inf)
        work.generated = continued.ids.shape[1]
        return reference, continued


def _grown(work: Work) -> tuple[Tensor, Continuation | None, Liveness]:
    with opened(work.request.grown, work.dtype, work.streamed, _layers(work, "grown")) as model:
        work.report("grown", 0, 1, "The grown model reads the text")
        logits = model.logits(work.ids)
        require_numbers(logits, "grown")
        continued = _continued(work, model.model, "grown") if work.generated else None
        return logits, continued, _liveness(work, model)


def _liveness(work: Work, grown: Opened) -> Liveness:
    entries = work.certificate.tensors
    work.report("liveness", 0, 1, "Gradients are sent to the new parameters")
    if not any(entry.new or any(entry.new_spans) for entry in entries.values()):
        return Liveness(reason="The certificate names no new parameters.")
    if work.packed:
        new = sum(entry.new and not weight_of(name, entries)[1] for name, entry in entries.items())
        return Liveness(new_tensors=new, reason=PACKED_LIVENESS)
    logits_bytes = 4 * work.ids.shape[1] * work.vocab * work.dtype.itemsize
    if grown.stream is not None:
        return check_streamed(grown.stream, work.ids, entries, work.memory.free_bytes // 4)
    if work.memory.holds(2 * weights_bytes(work.grown, work.dtype), logits_bytes):
        return check_whole(grown.model, work.ids, entries)
    grown.close()
    with opened(work.request.grown, work.dtype, True, _layers(work, "liveness")) as streamed:
        assert streamed.stream is not None
        return check_streamed(streamed.stream, work.ids, entries, work.memory.free_bytes // 4)


def _continued(work: Work, model: Any, whose: str, seconds: float = math.inf) -> Continuation:
    prompts = _prompts(work)
    tokens = max(min(work.generated, work.longest - prompts.shape[1]), 1)
    work.report(f"{whose} generation", 0, tokens, f"The {whose} model writes with a KV cache")
    return generate(model, prompts, tokens, seconds)


def _share(work: Work) -> float:
    """The source's part of `GENERATION_SECONDS`."""
    return GENERATION_SECONDS * work.source.elements / (work.source.elements + work.grown.elements)


def _prompts(work: Work) -> Tensor:
    """(B, L): one long prompt, so that windows are left behind; several short ones where each token costs a pass."""
    length = work.ids.shape[1]
    if work.streamed and length >= 4 * STREAMED_PROMPTS:
        each = length // STREAMED_PROMPTS
        return work.ids[0, : each * STREAMED_PROMPTS].reshape(STREAMED_PROMPTS, each)
    return work.ids[:, : max(min(length // 2, work.longest - GENERATED_TOKENS), 1)]


def _affordable_tokens(work: Work, model: Any) -> int:
    """How many tokens streamed generation can afford in both models, from the time of one on the source."""
    began = time.monotonic()
    generate(model, _prompts(work)[:, :1], 1)
    each = time.monotonic() - began
    tokens = min(int(_share(work) / max(each, 1e-9)), STREAMED_GENERATED)
    if tokens < FEWEST_GENERATED:
        work.notes.append(f"Generation was not tried: each token takes {each:.0f} s with models larger than memory.")
        return 0
    return tokens


def _reloaded(work: Work, logits: Tensor) -> bool | None:
    """Whether plain transformers, loading the files a second time, computes `logits` in their type."""
    working = 2 * logits.numel() * logits.element_size()
    if not work.memory.holds(weights_bytes(work.grown, logits.dtype), working):
        work.notes.append("Not loaded by plain transformers: the model is larger than memory.")
        return None
    with opened(work.request.grown, logits.dtype, False, _layers(work, "reload")) as model:
        work.report("reload", 0, 1, "The grown model, loaded from disk by plain transformers, reads the text")
        again = model.logits(work.ids)
    tolerance = max(SAME_LOGITS, torch.finfo(logits.dtype).eps if logits.dtype is torch.bfloat16 else 0.0)
    return torch.equal(again, logits) or logit_drift(logits, again).max_rel_logit_diff <= tolerance


def _in_bfloat16(work: Work, folder: Path, whose: str) -> Tensor | None:
    """Logits in bfloat16; None for packed weights, which have a type of their own to compute in, and for a changed
    function, where that rounding would drown in the difference."""
    if work.packed or not work.certificate.exact:
        return None
    with opened(folder, torch.bfloat16, work.streamed, _layers(work, f"{whose} bfloat16")) as model:
        work.report(f"{whose} bfloat16", 0, 1, f"The {whose} model reads the text in bfloat16")
        return model.logits(work.ids)


def _noise(work: Work, reference: Tensor, logits: Tensor | None, whose: str) -> Drift | None:
    if logits is None:
        return None
    if not bool(torch.isfinite(logits).all()):
        work.notes.append(f"In bfloat16 the {whose} model's logits are not all numbers.")
        return None
    return logit_drift(reference, logits)


def _arithmetic(work: Work, reference: Tensor) -> Drift | None:
    """The grown model with unrounded weights, always streamed: they are made as they are needed."""
    if work.packed or not work.certificate.exact:  # packed numbers are copied
        return None
    unrounded = unrounded_tensors(work.request.source, work.certificate, work.source, work.grown)
    if unrounded is None:
        return None
    with contextlib.closing(unrounded):
        with opened(work.request.grown, work.dtype, True, _layers(work, "unrounded"), unrounded) as model:
            work.report("unrounded", 0, 1, "The grown model with unrounded weights reads the text")
            logits = model.logits(work.ids)
        require_numbers(logits, "grown")
        return logit_drift(reference, logits)


def _layers(work: Work, phase: str) -> Any:
    def done(layers: int, total: int) -> None:
        work.report(phase, layers, total, f"Layer {layers} of {total}")

    return done
