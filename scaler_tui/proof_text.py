"""A certificate in words: the verdict, every figure with what it means, bars of noise, provenance, files.

Owns the wording for the command line and for the proof screen alike. Must not measure or know widgets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from engine.expansion.certificate import Certificate, Drift, Liveness, Proof
    from engine.jobs.card import GrowthResult
    from engine.jobs.events import ProofReady

EXACT_LIMIT = 1e-4
"""Largest float32 difference, relative to the range of the source's logits, of an operator that claims exactness."""
NOISE_FACTOR = 1.5
"""A grown model whose bfloat16 drift is within this factor of the source's own is called as noisy as the source."""
NAMED = 3
"""Tensors named before the rest is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    figure: str
    meaning: str
    tone: str = ""
    """ "good", "warn", "bad" or "": it only repeats what the words say."""


@dataclass(frozen=True, slots=True)
class Noise:
    """One bar: a relative difference on a scale that all bars share."""

    name: str
    relative: float
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What one operator did."""

    operator: str
    """Its title and name; "" for copies."""
    axes: str
    tensors: int
    parameters: int


def figure(value: float) -> str:
    """ "0", "3.1e-07", "0.0031"."""
    if value == 0:
        return "0"
    text = f"{value:.2g}" if abs(value) >= 1e-3 else f"{value:.1e}"
    return text.replace(".0e", "e")


def told_certificate(ready: ProofReady) -> Certificate:
    """What a run's journal kept of a certificate: everything but provenance and files."""
    import msgspec

    from engine.expansion.certificate import Certificate, Proof

    return Certificate(
        source="",
        operators=ready.operators,
        exact=ready.exact,
        parameters_before=ready.parameters_before,
        parameters_after=ready.parameters_after,
        proof=msgspec.convert(msgspec.to_builtins(ready.proof), Proof),
        seconds=ready.seconds,
        peak_rss_bytes=ready.peak_rss_bytes,
        bytes_written=ready.bytes_written,
    )


def told_growth(growth: GrowthResult) -> Certificate:
    """The same from a card."""
    import msgspec

    from engine.jobs.events import ProofReady, ProofReport

    proof = growth.proof or ProofReport(passed=False, exact_claimed=growth.exact)
    shared = {name: getattr(growth, name) for name in _TOLD}
    told = told_certificate(ProofReady(t=0.0, proof=proof, **shared))
    return told if growth.proof is not None else msgspec.structs.replace(told, proof=None)


_TOLD = ("operators", "parameters_before", "parameters_after", "exact", "seconds", "bytes_written", "peak_rss_bytes")


def verdict(certificate: Certificate) -> Finding:
    """The whole proof in one sentence."""
    proof = certificate.proof
    grown = f"{format_count(certificate.parameters_before)} to {format_count(certificate.parameters_after)} parameters"
    if proof is None:
        return Finding("Not proven", grown, "no proof was asked for, so nothing is known of its outputs", "warn")
    if not proof.passed:
        return Finding("Refused", grown, proof.reason or "the proof failed", "bad")
    if proof.exact_claimed:
        worst = judged.max_rel_logit_diff if (judged := judged_drift(proof)) else math.nan
        return Finding(
            "The same function",
            grown,
            f"logits differ by at most {figure(worst)} of their range; the limit is {figure(EXACT_LIMIT)}",
            "good",
        )
    before, after = proof.perplexity_before, proof.perplexity_after
    change = f"perplexity {before:.2f} before, {after:.2f} after" if before and after else "the function has changed"
    return Finding("Not the same function, and none was promised", grown, change, "warn")


def judged_drift(proof: Proof) -> Drift | None:
    """The difference that decides about exactness: with unrounded values where storing them had to round."""
    return proof.arithmetic or proof.float32


def findings(certificate: Certificate) -> tuple[Finding, ...]:
    """Every figure of the proof, most important first; empty where nothing was proven."""
    proof = certificate.proof
    if proof is None:
        return ()
    return tuple([*_drift(proof), *_behaviour(proof), _liveness(proof.liveness)])


def _drift(proof: Proof) -> Iterator[Finding]:
    drift = judged_drift(proof)
    if drift is not None:
        yield _largest(drift, proof)
        if proof.arithmetic is not None and proof.float32 is not None:
            stored = proof.float32
            meaning = f"{figure(stored.max_rel_logit_diff)} of their range: rounding to the stored type, which has no "
            yield Finding("as stored", figure(stored.max_abs_logit_diff), meaning + "more digits")
        yield Finding("mean difference", figure(drift.mean_abs_logit_diff), "over all logits, in float32")
        yield Finding("KL divergence", figure(drift.mean_kl), "nats per token, source against grown")
        same = drift.top1_agreement
        tone = ("good" if same == 1 else "bad") if proof.exact_claimed else ""
        yield Finding("same top token", _percent(same), "of positions predict the same next token", tone)
    if not proof.exact_claimed and proof.perplexity_before is not None and proof.perplexity_after is not None:
        ratio = proof.perplexity_after / proof.perplexity_before if proof.perplexity_before else math.nan
        yield Finding(
            "perplexity",
            f"{proof.perplexity_before:.2f}, {proof.perplexity_after:.2f}",
            f"before and after growing: {_times(ratio)}; training must win it back" if ratio > 1.005
            else "before and after growing: kept",
            "warn" if ratio > 1.005 else "good",
        )  # fmt: skip


def _largest(drift: Drift, proof: Proof) -> Finding:
    relative = drift.max_rel_logit_diff
    name, amount = "largest difference", figure(drift.max_abs_logit_diff)
    if not proof.exact_claimed:
        return Finding(name, amount, f"of a logit, {figure(relative)} of their range; exactness is not claimed")
    kept = relative <= EXACT_LIMIT
    meaning = f"{figure(relative)} of their range, {'at most' if kept else 'above'} {figure(EXACT_LIMIT)}"
    return Finding(name, amount, meaning, "good" if kept else "bad")


def _behaviour(proof: Proof) -> Iterator[Finding]:
    exact = proof.exact_claimed
    if proof.generation_identical is not None:
        same = proof.generation_identical
        meaning = f"{proof.generation_tokens} tokens, greedy, with KV cache"
        yield Finding("generation", "identical" if same else "differs", meaning, _tone(same, exact))
    else:
        yield Finding("generation", "not tried", proof.reason, "")
    if proof.reloaded is not None:
        meaning = "from disk, by plain AutoModelForCausalLM"
        yield Finding("reload", "identical" if proof.reloaded else "differs", meaning, _tone(proof.reloaded, True))
    else:
        yield Finding("reload", "not tried", proof.reason, "")
    if proof.bfloat16 is not None and proof.bfloat16_source is not None:
        grown, source = proof.bfloat16.max_rel_logit_diff, proof.bfloat16_source.max_rel_logit_diff
        ratio = grown / source if source else math.inf
        quiet = ratio <= NOISE_FACTOR
        meaning = f"{_times(ratio)} the source's own noise of {figure(source)}"
        yield Finding("in bfloat16", figure(grown), meaning, ("good" if quiet else "warn") if exact else "")


def _liveness(live: Liveness) -> Finding:
    name = "new parameters"
    if not live.checked:
        return Finding(name, "not checked", live.reason or "liveness was not checked", "warn")
    if live.alive:
        meaning = f"{live.new_tensors:,} tensors get gradients; no twins"
        return Finding(name, "alive", meaning, "good")
    parts = []
    if live.dead:
        parts.append(f"without a gradient: {_some(live.dead)}")
    if live.twins:
        parts.append(f"twins that stay equal: {_some(live.twins)}")
    return Finding(name, "not all alive", "; ".join(parts) or live.reason, "bad")


def noises(proof: Proof | None) -> tuple[Noise, ...]:
    """Largest relative differences to hold side by side; empty where none was measured."""
    if proof is None:
        return ()
    rows = (
        ("grown, float32", judged_drift(proof), "what growing changed"),
        ("source, bfloat16", proof.bfloat16_source, "the source's own rounding noise"),
        ("grown, bfloat16", proof.bfloat16, "the grown model as it is used"),
    )
    return tuple(Noise(name, drift.max_rel_logit_diff, remark) for name, drift, remark in rows if drift is not None)


def noise_cells(relative: float, width: int, *, smallest: float = 1e-9) -> int:
    """Length of a bar on a logarithmic scale from `smallest` to 1; at least one cell for anything but zero."""
    if relative <= 0:
        return 0
    share = 1 - math.log10(min(max(relative, smallest), 1.0)) / math.log10(smallest)
    return max(round(share * width), 1)


def provenance(certificate: Certificate) -> tuple[Provenance, ...]:
    """Per operator the tensors it touched, then those copied byte for byte ("")."""
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for entry in certificate.tensors.values():
        for operator in entry.operators or ("",):
            tensors[operator] += 1
            parameters[operator] += math.prod(entry.shape)
    axes: dict[str, list[str]] = {}
    for axis, operator in certificate.operators.items():
        axes.setdefault(operator, []).append(axis)
    order = [
        *[name for name in axes if name in tensors],
        *sorted(name for name in tensors if name and name not in axes),
    ]
    if "" in tensors:
        order.append("")
    return tuple(
        Provenance(_titled(name), ", ".join(axes.get(name, [])), tensors[name], parameters[name]) for name in order
    )


def _titled(name: str) -> str:
    from engine.expansion.operators import OPERATORS

    if name == "rescale":
        return "rescaled for the wider stream"
    return f"{OPERATORS[name].title} ({name})" if name in OPERATORS else name


def new_share(certificate: Certificate) -> float:
    """New parameters over all parameters of the grown model."""
    after = certificate.parameters_after
    return (after - certificate.parameters_before) / after if after else 0.0


def work_line(certificate: Certificate) -> str:
    """ "14.2 MiB in 3 files, 3 s, peak 180 MiB"."""
    files = len(certificate.files)
    return (
        f"{format_bytes(certificate.bytes_written)} in {files} {'file' if files == 1 else 'files'}, "
        f"{format_duration(certificate.seconds)}, peak memory {format_bytes(certificate.peak_rss_bytes)}"
    )


def measured_on(proof: Proof) -> str:
    """On what and how the proof was made."""
    how = {"": "", "whole": ", one model in memory at a time"}.get(proof.method, f", {proof.method}")
    counted = f"{proof.tokens:,} tokens"
    text = proof.text if proof.text.startswith(counted) else f"{counted} of {proof.text or 'text'}"
    return f"measured on {text}{how}, in {format_duration(proof.seconds)}"


def _percent(share: float) -> str:
    """Never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{math.floor(share * 10000) / 100:.2f} %"


def _times(ratio: float) -> str:
    return "far more" if not math.isfinite(ratio) else f"{ratio:.2f}x" if ratio < 100 else f"{ratio:,.0f}x"


def _some(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _tone(same: bool, promised: bool) -> str:
    if not promised:
        return ""
    return "good" if same else "bad"
