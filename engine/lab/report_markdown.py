"""A lab's report as Markdown, for documents.

Owns its tables. Must not know how figures were made.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.lab.figures import written, written_difference
from engine.lab.report import ArmRow, Report
from engine.lab.verdicts import ArmFigure, Verdict
from engine.units import format_count, format_duration


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [
        f"# {report.title}",
        report.question,
        f"{report.finished} of {report.total} runs finished; begun {report.day}, on {report.machine}.",
        "## Which approach won",
        answers(report),
        "## Arms",
        arms_table(report.arms),
        report.how,
        "## Figures",
        figures_table(report),
        report.method,
    ]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def answers(report: Report) -> str:
    """One line per goal."""
    return "\n".join(f"- **{verdict.goal}**: {verdict.words}" for verdict in report.verdicts)


def arms_table(arms: Sequence[ArmRow]) -> str:
    """What each arm is and what it cost."""
    rows = [
        [
            arm.name,
            arm.task if arm.start == "model" else f"{arm.task}, from random weights",
            f"{format_count(arm.parameters)} ({format_count(arm.trainable_parameters)})",
            f"{arm.steps:,}",
            f"{arm.tokens:,.0f}",
            written(arm.flops, "flops"),
            format_duration(arm.training_seconds) if arm.training_seconds is not None else "",
            format_duration(arm.hours * 3600) if arm.hours is not None else "",
            *([written(arm.usd, "usd")] if arm.usd is not None else []),
        ]
        for arm in arms
    ]
    heads = ["arm", "task", "parameters (trained)", "steps", "tokens", "FLOPs", "training", "working time"]
    return table([*heads, "cost"] if any(arm.usd is not None for arm in arms) else heads, rows)


def figures_table(report: Report) -> str:
    """One column per goal, mean and interval; the winner in bold."""
    heads = ["arm", *(f"{verdict.label} {'↑' if verdict.higher_is_better else '↓'}" for verdict in report.verdicts)]
    rows = [[arm.name, *(cell(verdict, arm.name) for verdict in report.verdicts)] for arm in report.arms]
    return table(heads, rows)


def cell(verdict: Verdict, arm: str) -> str:
    """ "0.412 (0.40 to 0.43)"."""
    figure = next(one for one in verdict.arms if one.arm == arm)
    text = figure_words(verdict, figure)
    return f"**{text}**" if verdict.winner == arm else text


def figure_words(verdict: Verdict, figure: ArmFigure) -> str:
    """A mean with its interval, and what is missing."""
    if figure.mean is None:
        if " until " not in verdict.label:
            return "not measured"
        return f"reached with {len(figure.values)} of {len(figure.values) + figure.missing} seeds"
    text = written(figure.mean, verdict.figure, verdict.per)
    if figure.low is not None and figure.high is not None and figure.high > figure.low:
        half = written_difference((figure.high - figure.low) / 2, verdict.figure, verdict.per).lstrip("+")
        text += f" ± {half.removesuffix(' points') if text.endswith('%') else half}"
    return f"{text} ({figure.missing} missing)" if figure.missing else text


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
