"""What the page says about growth: each expansion of the job with its proof in figures.

Owns the section's words. Must not know how a proof is made.
"""

from __future__ import annotations

from html import escape

from engine.jobs.card import Card, GrowthResult
from engine.jobs.events import ProofReport
from engine.units import format_bytes, format_count, format_duration


def growth_section(card: Card) -> str:
    """HTML; empty for a job that grew nothing."""
    if not card.growths:
        return ""
    panels = "".join(_panel(growth, numbered=len(card.growths) > 1) for growth in card.growths)
    return f"<section><h2>Growth</h2>{panels}</section>"


def _panel(growth: GrowthResult, *, numbered: bool) -> str:
    stage = [("Stage", f"{growth.stage}")] if numbered else []
    size = f"{format_count(growth.parameters_before)} to {format_count(growth.parameters_after)} parameters"
    operators = ", ".join(f"{axis}: {name}" for axis, name in growth.operators.items())
    work = f"{format_bytes(growth.bytes_written)} in {format_duration(growth.seconds)}"
    pairs = [*stage, ("Size", size), ("Operators", escape(operators)), ("Written", work), *_proof(growth)]
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in pairs if text)
    return f'<div class="panel"><dl>{listed}</dl></div>'


def _proof(growth: GrowthResult) -> list[tuple[str, str]]:
    proof = growth.proof
    if proof is None:
        return [("Proof", "none was asked for")]
    verdict = "passed" if proof.passed else "failed"
    claim = "the function is kept" if growth.exact else "the function is changed, as the operators do"
    found = [("Proof", f"{verdict}: {claim}{f'; {escape(proof.reason)}' if proof.reason else ''}")]
    if proof.float32 is not None:
        drift = proof.float32
        found.append(
            (
                "Logits",
                f"differ by {drift.max_abs_logit_diff:.2g} at most ({drift.max_rel_logit_diff:.2g} of their range), "
                f"KL {drift.mean_kl:.2g}, same next token at {drift.top1_agreement:.2%} of {proof.tokens:,} positions",
            )
        )
    return [*found, *_behaviour(proof)]


def _behaviour(proof: ProofReport) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    if proof.generation_identical is not None:
        same = "identical" if proof.generation_identical else "different"
        pairs.append(("Answers", f"{same} over {proof.generation_tokens} tokens with KV cache"))
    if proof.reloaded is not None:
        pairs.append(("Reload", "equal from disk" if proof.reloaded else "not equal from disk"))
    if proof.perplexity_before is not None and proof.perplexity_after is not None:
        pairs.append(("Perplexity", f"{proof.perplexity_before:.3f} to {proof.perplexity_after:.3f}"))
    if proof.liveness.checked:
        alive = "every new tensor can learn" if proof.liveness.alive else "some new parameters cannot learn"
        pairs.append(("Liveness", f"{alive} ({proof.liveness.new_tensors} new)"))
    return pairs
