"""Which figures can decide a goal, which way is better, and how they are written.

Owns their names and words. Must not know where they are read (`engine.lab.results`).
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import EngineError
from engine.units import format_count, format_duration, format_usd

COSTS = ("flops", "tokens", "hours", "usd")
_PLAIN = ("task_loss", "exact_match", "base_perplexity", *COSTS)
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_NAMED = ("suite", "benchmark", "retention")
OTHER_SCORES = ("rising", "falling")
"""Benchmarks whose figure is no share of right answers: better when it is high, or low, as lm-eval says."""


@dataclass(frozen=True, slots=True)
class Figure:
    """ "benchmark:demo_arithmetic" taken apart."""

    kind: str
    name: str = ""

    @property
    def is_cost(self) -> bool:
        """What was spent, not what came of it."""
        return self.kind in COSTS

    @property
    def higher_is_better(self) -> bool:
        """Right answers and what was kept; losses and costs are better when they are low."""
        return self.kind in ("exact_match", "benchmark", "rising", "retention")

    @property
    def is_share(self) -> bool:
        """From 0 to 1, written in percent."""
        return self.kind in ("exact_match", "benchmark")


def parse_figure(text: str) -> Figure:
    """Raises EngineError `lab.figure`."""
    kind, _, name = text.partition(":")
    if (text in _PLAIN) or (kind in (*_NAMED, *OTHER_SCORES) and name):
        return Figure(kind, name)
    raise EngineError(
        "lab.figure",
        f"'{text}' is no figure a goal can be decided by.",
        next_step=f"Use {', '.join(_PLAIN)}, {', '.join(f'{one}:NAME' for one in _NAMED)}.",
    )


def label_of(figure: str, per: str = "", reach: float | None = None) -> str:
    """The heading of a column, with its unit."""
    parsed = parse_figure(figure)
    base = {
        "task_loss": "task loss (nats per token)",
        "exact_match": "exact answers",
        "base_perplexity": "perplexity on base text",
        "suite": f"{parsed.name} (bits per byte)",
        "benchmark": parsed.name,
        "rising": parsed.name,
        "falling": parsed.name,
        "retention": f"{parsed.name}, against the parent",
        "flops": "FLOPs of training",
        "tokens": "tokens",
        "hours": "working time",
        "usd": "money",
    }[parsed.kind]
    if reach is not None:
        return f"{base} until a held-out loss of {reach:g}"
    return f"gain in {base} per {UNIT_OF_COST[per]}" if per else base


UNIT_OF_COST = {"flops": "10¹² FLOPs", "tokens": "million tokens", "hours": "hour", "usd": "dollar"}
SCALE_OF_COST = {"flops": 1e12, "tokens": 1e6, "hours": 1.0, "usd": 1.0}


def written(value: float, figure: str, per: str = "") -> str:
    """A value as tables show it."""
    parsed = parse_figure(figure)
    if per:
        return f"{value:.4g}"
    if parsed.is_share:
        return f"{100 * value:.1f} %"
    if parsed.kind == "flops":
        return _power_of_ten(value)
    if parsed.kind == "tokens":
        return format_count(value)
    if parsed.kind == "hours":
        return format_duration(value * 3600)
    if parsed.kind == "usd":
        return format_usd(value) if value >= 0.01 else f"${value:.5f}"
    return f"{value:+.3f}" if parsed.kind == "retention" else f"{value:.3f}"


def _power_of_ten(value: float) -> str:
    """ "6.01·10¹¹"."""
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa}·10{str(int(power)).translate(_RAISED)}"


def written_difference(value: float, figure: str, per: str = "") -> str:
    """A difference of two values, with its sign."""
    parsed = parse_figure(figure)
    sign = "+" if value >= 0 else "−"
    size = abs(value)
    if parsed.is_share and not per:
        return f"{sign}{100 * size:.1f} points"
    return f"{sign}{written(size, figure, per).lstrip('+')}"
