"""Teacher, mix and export of a spec as labelled lines, for review, run details and `--plain`.

Owns the wording. Must not choose a value: they are the spec's.
"""

from __future__ import annotations

from pathlib import Path

from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import SELF, DistillLoss, Held, MissingMass, Tokenizers
from engine.jobs.spec_export import Destination
from engine.jobs.spec_mix import MixMethod
from engine.jobs.spec_section import Task

Lines = list[tuple[str, str]]

HELD = {
    Held.AUTO: "held where it fits",
    Held.RESIDENT: "held in memory beside the student",
    Held.NF4: "held in memory, in 4 bits",
    Held.OFFLOADED: "its weights in host memory",
    Held.CACHED: "its logits are written to disk before training",
}
LOSSES = {
    DistillLoss.FORWARD_KL: "forward KL: the student covers what the teacher might say",
    DistillLoss.REVERSE_KL: "reverse KL: the student says only what the teacher would",
    DistillLoss.JSD: "Jensen-Shannon",
}
MISSING = {
    MissingMass.REST: "the rest as one more outcome",
    MissingMass.RENORMALISE: "renormalised",
    MissingMass.ZERO: "the rest left out",
}
METHODS = {
    MixMethod.EXACT: "exact weighted sum of the updates",
    MixMethod.LINEAR: "weighted mean of the updates",
    MixMethod.TIES: "TIES: trimmed, signs elected, those that agree averaged",
    MixMethod.DARE: "DARE: entries dropped at random, the others rescaled, summed",
    MixMethod.DARE_TIES: "DARE with the signs of TIES",
    MixMethod.MAGNITUDE: "only the largest entries, summed",
    MixMethod.SVD: "the sum, cut by its singular values",
}
TRIMS = (MixMethod.TIES, MixMethod.DARE, MixMethod.DARE_TIES, MixMethod.MAGNITUDE)
"""Methods that keep a share of every update."""
ELECTS = (MixMethod.TIES, MixMethod.DARE_TIES)
"""Methods that elect signs."""
DESTINATIONS = {
    Destination.HF: "a folder for transformers and vLLM",
    Destination.GGUF: "GGUF for llama.cpp and LM Studio",
    Destination.OLLAMA: "Ollama",
}


def result_lines(spec: JobSpec) -> Lines:
    """(label, words) of teacher, mix and export; empty for a spec with none of them."""
    return [*distillation_lines(spec), *mix_lines(spec), *export_lines(spec)]


def distillation_lines(spec: JobSpec) -> Lines:
    """Who teaches, by which loss, and on whose answers."""
    section = spec.distillation
    if not section.distils:
        return []
    if section.teacher == SELF:
        who = "the model as it is before this job"
        who += ", at no cost in memory" if spec.task.trains_adapter else f"; {HELD[section.held]}"
    else:
        revision = f" at {section.teacher_revision}" if section.teacher_revision else ""
        who = f"{_short(section.teacher)}{revision}; {HELD[section.held]}"
    lines = [("Teacher", who), ("Lesson", _loss_words(spec))]
    if section.hidden_weight:
        which = ", ".join(map(str, section.hidden_layers)) if section.hidden_layers else "the last"
        lines.append(("Hidden", f"states of layers {which} compared, weight {section.hidden_weight:g}"))
    if section.on_policy:
        greedy = "greedily" if not section.rollout_temperature else f"at temperature {section.rollout_temperature:g}"
        lines.append(
            ("Answers", f"{section.on_policy:.0%} of the steps learn on the student's own, up to "
             f"{section.rollout_tokens} tokens written {greedy}; slower")
        )  # fmt: skip
    return lines


def _loss_words(spec: JobSpec) -> str:
    section = spec.distillation
    words = "sorted probabilities (ULD): the tokenizers differ" if section.tokenizers is Tokenizers.ULD else (
        LOSSES[section.loss]
    )  # fmt: skip
    if section.loss is DistillLoss.JSD and section.tokenizers is Tokenizers.SAME:
        words += f", beta {section.beta:g}"
    parts = [words, f"temperature {section.temperature:g}", f"{section.ce_weight:.0%} labels"]
    if section.top_k:
        parts.append(f"top {section.top_k}, {MISSING[section.missing_mass]}")
    return "; ".join(parts)


def mix_lines(spec: JobSpec) -> Lines:
    """Which adapters with which weights, and how."""
    if spec.task is not Task.MIX:
        return []
    mix = spec.mix
    lines = [
        ("Adapters" if not place else "", f"{one.weight:g} x {one.name or _short(one.path)}")
        for place, one in enumerate(spec.adapters)
    ]
    how = METHODS[mix.method]
    how += f"; density {mix.density:g}" if mix.method in TRIMS else ""
    how += f"; signs by {mix.signs.value}" if mix.method in ELECTS else ""
    lines.append(("Method", how + (f"; rank {mix.rank}" if mix.rank else "; as exact as it can be stored")))
    if mix.sweep:
        lines.append(("Sweep", f"{mix.sweep} sets of weights measured on held-out rows; the best are taken"))
    lines.append(("Saved", "an adapter" + ("; merged model too" if spec.output.merge else "") + "; nothing is trained"))
    return lines


def export_lines(spec: JobSpec) -> Lines:
    """What is written for other programs when the job is done."""
    export = spec.export
    if not export.to:
        return []
    words = ", ".join(DESTINATIONS[one] for one in export.to)
    if Destination.GGUF in export.to or Destination.OLLAMA in export.to:
        sizes = ", ".join(export.gguf_types)
        merged = "merged, " if spec.task.trains_adapter or spec.task is Task.MIX else ""
        what = "the adapter beside its base" if export.adapter else f"{merged}as {sizes}"
        words += f"; {what}"
        words += "; compared with transformers where the runtime is there" if export.verify else "; not compared"
    return [("Export", words)]


def _short(source: str) -> str:
    """A hub id whole, of a path its last two parts."""
    path = Path(source)
    if path.is_absolute() and path.parent.name == "output":
        return f"run {path.parent.parent.name}"
    return str(Path(*path.parts[-2:])) if path.is_absolute() else source
