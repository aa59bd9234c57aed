"""The refusal of a job that does not fit, with the ways out.

Owns its words. Must not decide: the verdict is in the appraisal.
"""

from __future__ import annotations

from engine.advise.appraisal import Appraisal
from engine.advise.fit import Plan
from engine.advise.fixes import Fix, fixes_for
from engine.advise.knobs import Edit
from engine.errors import EngineError, ExitCode


def refusal_of(found: Appraisal, code: str, *, spec_keys: bool = False) -> EngineError:
    """EngineError `code` with exit code 4: why it does not fit, and the cheapest ways out, numbered.

    `spec_keys`: the ways out also name the keys to change in a spec.
    """
    plan = found.plan
    fixes = fixes_for(found)
    listed = " ".join(
        f"({number}) {fix.sentence}{_keys(fix) if spec_keys else ''}." for number, fix in enumerate(fixes, start=1)
    )
    none = "Nothing on this machine makes it fit; choose a much smaller model."
    return EngineError(
        code,
        f"{plan.approach.title} on {plan.final.name} does not fit: {found.judgement.reason}.",
        cause=f"Largest term: {found.limiting}. Origin of the figure: {found.memory.origin.value}.",
        next_step=listed or none,
        exit_code=ExitCode.DOES_NOT_FIT,
    )


def context_refusal(plan: Plan) -> EngineError:
    """Why this model's window cannot, or need not, be longer: `context.no_rotary` or `context.not_longer`."""
    window = plan.base.context_length
    if plan.base.rope.kind == "none":
        within = f"Train it within its {window:,} tokens with lora or qlora, or choose a model with rotary positions."
        return EngineError("context.no_rotary", plan.impediment, next_step=within)
    return EngineError(
        "context.not_longer",
        plan.impediment,
        next_step=f"Choose lora or qlora for rows up to {window:,} tokens, or ask for more: --context {2 * window}.",
    )


def settings_words(edits: tuple[Edit, ...]) -> str:
    """ "training.batch_size = 1, training.gradient_accumulation = 16", as they stand in a spec."""
    return ", ".join(f"{key} = {_literal(value)}" for key, value in edits)


def _keys(fix: Fix) -> str:
    return f" (set {settings_words(fix.edits)})" if fix.edits else ""


def _literal(value: str | int | float | bool | tuple[int, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
