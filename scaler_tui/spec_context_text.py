"""The longer window in a spec as labelled lines: to which length, by which method, how it is trained and measured.

Owns the wording for review, run details and `--plain`. Must not choose a value: they are the spec's.
"""

from __future__ import annotations

from pathlib import Path

from engine.jobs.spec import JobSpec
from engine.jobs.spec_section import Task

WINDOWS = {
    "full": "every sequence has the length it is trained for",
    "pose": "short sequences with skipped positions: memory does not grow with the window",
    "mixed": "short sequences with the old positions and long ones with the new, by turns",
}
TITLES = {"full": "full length", "pose": "PoSE", "mixed": "mixed windows", "none": "no training"}
NO_TRAINING = "the new positions are written and measured; no weight changes"


def context_lines(spec: JobSpec) -> list[tuple[str, str]]:
    """(label, words); empty for a job that keeps the window."""
    section = spec.context
    if not section.extends:
        return []
    lines = [("Window", f"to {section.length:,} tokens; {_method_words(spec)}")]
    if spec.task is Task.EXTEND:
        lines.append(("Training", f"none: {NO_TRAINING}"))
    else:
        lines.append(("Length", window_words(spec)))
        lines.append(("Also", _also_words(spec)))
    lines.append(("Measured", _measured_words(spec)))
    if section.max_short_loss:
        lines.append(("Gate", f"stops when short text is more than {section.max_short_loss:.0%} worse than before"))
    return lines


def window_words(spec: JobSpec) -> str:
    """ "PoSE: short sequences with ...; 2,048 tokens in 2 pieces"."""
    section = spec.context
    words = f"{TITLES[section.window]}: {WINDOWS[section.window]}"
    short = f"{section.train_length:,} tokens" if section.train_length else "the old window"
    if section.window == "pose":
        return f"{words}; {short} in {section.pose_chunks} pieces"
    if section.window == "mixed":
        return f"{words}; {section.short_share:.0%} of the tokens in {short}"
    if section.curriculum:
        return f"{words}; {' then '.join(f'{length:,}' for length in section.curriculum)} tokens"
    return f"{words}: {spec.data.max_length:,} tokens"


def _method_words(spec: JobSpec) -> str:
    section = spec.context
    if section.method == "auto":
        return "every method that needs no search is measured on the model first, the best is taken"
    extra = f" with base {section.theta:g}" if section.theta else ""
    extra += f" with the factors of {Path(section.factors).name}" if section.factors else ""
    return f"by {section.method}{extra}"


def _also_words(spec: JobSpec) -> str:
    section, training = spec.context, spec.training
    parts = []
    if spec.task.trains_adapter:
        learns = [name for name, on in (("norms", section.train_norms), ("embeddings", section.train_embeddings)) if on]
        parts.append(f"{' and '.join(learns)} learn too" if learns else "norms and embeddings stay as they are")
    if training.offload_activations:
        parts.append("what layers keep waits in host RAM")
    if training.loss_chunk_tokens:
        parts.append(f"loss in pieces of {training.loss_chunk_tokens:,} tokens")
    return ", ".join(parts) or "nothing else"


def _measured_words(spec: JobSpec) -> str:
    evaluation = spec.evaluation
    lengths = ", ".join(f"{length:,}" for length in evaluation.lengths) or "lengths up to the new window"
    needles = f"; {evaluation.needle_prompts} needles per length and depth" if evaluation.needle_prompts else ""
    when = "before and after: " if spec.task.trains else ""
    return f"{when}perplexity at {lengths}{needles}; short text against the model as it was"
