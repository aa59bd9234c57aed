"""What a user should know about a plan, in sentences. Owns the notes; must not refuse anything."""

from __future__ import annotations

from engine.context.critical import base_lower_bound, base_suffices
from engine.context.method import Method
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan, PlannedRotary
from engine.context.reading import Reading
from engine.context.refusals import angle_rounding

_COARSE_ANGLE = 0.05
"""Radians; a turn that models tell apart at the fastest pair is about 1."""
_DROPS_CACHE = ("phi3", "phimoe", "phi4_multimodal")
"""Families that drop the cache when generation crosses the original length."""
FREE_RATIO = 4.0
"""Up to it the better methods work without training on published models."""


def notes_of(plan: ContextPlan, method: Method, reading: Reading) -> tuple[str, ...]:
    """Lints, layers left alone, and what was assumed."""
    scaled = plan.scaled
    return (
        *_length_notes(plan),
        *_base_notes(plan, scaled),
        *_switching_notes(plan, scaled, method, reading),
        *_layer_notes(plan, reading),
        *_window_notes(plan, reading),
    )


def cache_goes_stale(plan: ContextPlan, model_type: str) -> bool:
    """Whether generating across the old window with a KV cache mixes keys turned by different frequencies."""
    if METHODS[plan.method].id == "dynamic":
        return True
    return plan.scaled.scaling.switches and model_type not in _DROPS_CACHE


def _length_notes(plan: ContextPlan) -> list[str]:
    notes = []
    rounding = angle_rounding(plan.target)
    if rounding > _COARSE_ANGLE:
        notes.append(f"At {plan.target:,} tokens float32 rounds the fastest pair's angle by up to {rounding:.2g} rad.")
    rotary = plan.scaled.rotary
    if float(rotary.length) * (plan.target / rotary.length) != plan.target:
        notes.append(f"{plan.target:,} is no exact multiple of {rotary.length:,}; readers may round the window down.")
    if plan.factor > FREE_RATIO:
        notes.append(
            f"{plan.factor:.3g} times the window is beyond what works without training at length; train after."
        )
    return notes


def _base_notes(plan: ContextPlan, scaled: PlannedRotary) -> list[str]:
    if plan.method not in ("ntk", "ntk-critical", "abf"):
        return []
    rotary, divisor = scaled.rotary, scaled.scaling.divisors[-1]
    if rotary.present_kind != "default":
        return [f"The present scaling ({rotary.present_kind}) stays; the base is raised under it."]
    base = rotary.theta * divisor ** (rotary.dim / (rotary.dim - 2))
    if base_suffices(base, plan.target, rotary.dim):
        return []
    bound = base_lower_bound(plan.target, rotary.dim)
    own_under = not base_suffices(rotary.theta, rotary.length, rotary.dim)
    return [
        f"The base {base:.3g} is under the bound for {plan.target:,} tokens, about {bound:.1g} (arXiv 2405.14591): "
        "perplexity may look right while retrieval fails. A hint only"
        + (": the present base is under the bound of the present window too." if own_under else ".")
    ]


def _switching_notes(plan: ContextPlan, scaled: PlannedRotary, method: Method, reading: Reading) -> list[str]:
    notes = []
    if method.id == "dynamic":
        notes.append("For use, not for export. " + method.not_exported_reason)
    elif scaled.scaling.switches:
        notes.append(
            "Frequencies change when a sequence passes the old window, for the whole batch: one long row puts short "
            "rows on the long factors."
        )
        if cache_goes_stale(plan, reading.model_type):
            notes.append(
                "Generating across the old window with a KV cache gives wrong text: its keys were turned by the short "
                "factors. transformers drops the cache there for Phi-3 only."
            )
        if scaled.scaling.attention_factor != 1:
            notes.append(
                f"Short sequences are not those of the original model: cos and sin are multiplied by "
                f"{scaled.scaling.attention_factor:.4g} in both modes."
            )
    elif method.id not in ("ntk", "ntk-critical", "abf"):
        notes.append("The scaling is static and changes short text too; compare its loss before and after.")
    return notes


def _layer_notes(plan: ContextPlan, reading: Reading) -> list[str]:
    notes = []
    for planned in plan.rotaries:
        if not planned.changed:
            kind = planned.rotary.layer_type.replace("_", "-")
            notes.append(f"The {kind} layers keep their frequencies (base {planned.rotary.theta:g}).")
    for note in reading.shape.notes:
        if "no rotary positions" in note:
            notes.append(note.removesuffix(".") + "; they are left alone.")
    if not reading.shape.family.known:
        notes.append("The family is unknown here; that its class reads rope_parameters as others do is assumed.")
    return notes


def _window_notes(plan: ContextPlan, reading: Reading) -> list[str]:
    shape = reading.shape
    notes: list[str] = []
    if shape.sliding_window is None or reading.nested:
        return notes
    if shape.sliding_layers >= shape.layers:
        notes.append(
            f"Every layer sees only the last {shape.sliding_window:,} tokens: no distance grows with the text, and "
            "what lies further back is reached through other layers alone. A longer window gains little before the "
            "sliding window is removed and the model trained."
        )
    elif shape.sliding_layers and shape.family.name != "smollm3":
        notes.append(
            f"{shape.sliding_layers} of {shape.layers} layers see only the last {shape.sliding_window:,} tokens; they "
            "share the rotary embedding with the others and are scaled with them."
        )
    return notes
