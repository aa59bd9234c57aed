"""The text, limits and processes in a spec as labelled lines, for review, run details and `--plain`.

Owns the wording. Must not choose a value: they are the spec's.
"""

from __future__ import annotations

from engine.jobs.spec import JobSpec
from engine.units import format_count, format_usd
from scaler_tui.abilities_text import gate_words


def stream_lines(spec: JobSpec) -> list[tuple[str, str]]:
    """(label, words); empty for a job on rows that measures and limits nothing besides."""
    lines = _sources(spec) if spec.sources else []
    if spec.suites:
        lines.append(("Followed", "bits per byte of " + ", ".join([*_names(spec), *(one.name for one in spec.suites)])))
    if spec.evaluation.tasks:
        often = spec.evaluation.tasks_every_steps
        meanwhile = f", a part of them every {often:,} steps" if often else ""
        lines.append(("Asked", f"{', '.join(spec.evaluation.tasks)} before and after{meanwhile}"))
    for gate in spec.retention:
        words = gate_words(gate.on, gate.most_lost, gate.action).removeprefix("Gate: a ")
        lines.append(("Limit", words))
    if stops := _stop_words(spec):
        lines.append(("Ends", stops))
    if spec.distributed.world > 1:
        lines.append(("Processes", process_words(spec)))
    return lines


def _sources(spec: JobSpec) -> list[tuple[str, str]]:
    total = sum(source.weight for source in spec.sources) or 1.0
    lines = [
        ("Text" if not place else "", f"{source.name} {source.weight / total * 100:.0f} %, {source.path}")
        for place, source in enumerate(spec.sources)
    ]
    stream = spec.stream
    drops = {"exact": "duplicates", "near": "duplicates and near duplicates", "off": ""}[stream.deduplicate]
    dropped = [drops] if drops else []
    dropped += ["what shares text with the evaluation"] if stream.decontaminate else []
    kept = f"without {' and '.join(dropped)}; " if dropped else ""
    bad = f"unreadable documents are passed over up to {stream.bad_share:.0%}"
    lines.append(("Read", kept + (bad if stream.bad_input == "skip" else "unreadable input ends the run")))
    if spec.training.max_tokens and not spec.stages:
        lines.append(("Tokens", format_count(spec.training.max_tokens)))
    return lines


def _names(spec: JobSpec) -> list[str]:
    return [source.name for source in spec.sources]


def _stop_words(spec: JobSpec) -> str:
    stop, parts = spec.stop, []
    if stop.loss:
        parts.append(f"at a held-out loss of {stop.loss:g}")
    if stop.plateau_evaluations:
        parts.append(f"after {stop.plateau_evaluations} evaluations without {stop.plateau_gain:.1%} of gain")
    if stop.hours:
        parts.append(f"after {stop.hours:g} hours")
    if stop.usd:
        parts.append(f"when {format_usd(stop.usd)} is spent")
    if stop.spike_factor:
        often = f"at most {stop.spike_retries} times"
        parts.append(f"goes back where the loss leaps above {stop.spike_factor:g} times the usual, {often}")
    return "; ".join(parts)


def process_words(spec: JobSpec) -> str:
    """ "4, fsdp2 where ddp does not fit"."""
    section = spec.distributed
    where = f" on each of {section.nodes} machines" if section.nodes > 1 else ""
    how = {"auto": "a whole copy each where it fits, else a share", "ddp": "a whole copy each", "fsdp2": "a share each"}
    restarts = f"; restarts up to {section.restarts} times" if section.restarts else ""
    return f"{section.processes}{where}, {how[section.strategy]}{restarts}"
