"""Which operator grows which axis, and what a plan therefore keeps or loses.

Owns reading `--operator NAME` and `--operator AXIS=NAME`, the defaults, and exactness of a whole plan. Must not know
sizes beyond whether an axis changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.errors import EngineError
from engine.expansion.axes import Dim, Dims
from engine.expansion.operators import DEFAULTS, LAYERS, OPERATORS, operator_named
from engine.expansion.operators.registry import Operator
from engine.expansion.plan import ExpansionPlan

UPCYCLE = "upcycle"
AXES = (
    Dim.HIDDEN.value,
    Dim.FFN.value,
    Dim.EXPERT_FFN.value,
    Dim.SHARED_FFN.value,
    Dim.QUERY.value,
    Dim.KEY_VALUE.value,
    Dim.EXPERT.value,
    LAYERS,
)
"""Keys of a plan's operators, in the order they are shown."""
_SPOKEN = {Dim.EXPERT_FFN.value: (Dim.FFN.value,), Dim.SHARED_FFN.value: (Dim.FFN.value,)}
"""Axis -> other names it goes by: in a mixture, the feed-forward width that is asked for is an expert's."""


def changed_axes(before: Dims, after: Dims) -> tuple[str, ...]:
    """The axes whose number of units differs."""
    changed = [
        axis
        for axis in AXES
        if (before.layers != after.layers if axis == LAYERS else before.of(Dim(axis)) != after.of(Dim(axis)))
    ]
    if before.experts == 0 and after.experts:
        changed.remove(Dim.EXPERT_FFN.value)  # the expert's width is the feed-forward network's
    return tuple(changed)


def choose_operators(names: Sequence[str], changed: Iterable[str], *, upcycling: bool = False) -> dict[str, str]:
    """An operator for each changed axis: the first named one that grows it, else the default.

    A name may be "AXIS=NAME". Raises EngineError `expansion.operator` for an unknown one, for an axis it cannot grow,
    and for one that would grow nothing: a choice without effect is a misunderstanding.
    """
    wishes = [_parsed(name) for name in names]
    chosen: dict[str, str] = {}
    used: set[int] = set()
    for axis in changed:
        fitting = [
            (index, operator)
            for index, (only, operator) in enumerate(wishes)
            if axis in operator.axes and only in ("", axis, *_SPOKEN.get(axis, ()))
        ]
        fitting.sort(key=lambda item: wishes[item[0]][0] != axis)
        if fitting:
            chosen[axis] = fitting[0][1].name
            used.add(fitting[0][0])
        elif axis == Dim.EXPERT.value and upcycling:
            chosen[axis] = UPCYCLE
        else:
            chosen[axis] = DEFAULTS[axis]
    for index, (only, operator) in enumerate(wishes):
        if index not in used:
            raise _without_effect(operator, only, tuple(changed))
    return chosen


def _for_experts(operator: Operator, *, upcycling: bool) -> bool:
    """Experts are made of a feed-forward network, or of experts; operators do one of the two.

    Raises EngineError `expansion.operator` for the wrong one.
    """
    if (operator.grow is None) == upcycling:
        return True
    raise EngineError(
        "expansion.operator",
        f"The operator {operator.name} does not fit this model.",
        cause="It grows mixtures of experts, and this model is dense."
        if upcycling
        else "It turns a dense model into a mixture of experts, and this is one already.",
        next_step=f"Use {UPCYCLE if upcycling else DEFAULTS[Dim.EXPERT.value]}, or leave the choice open.",
    )


def wished_for(names: Sequence[str], axis: str) -> str:
    """The operator named for `axis` alone or for all it grows, "" when none is; for sizes that depend on it."""
    wishes = [(only, operator) for only, operator in map(_parsed, names) if axis in operator.axes]
    fitting = [operator.name for only, operator in wishes if only == axis] or [
        operator.name for only, operator in wishes if not only
    ]
    return fitting[0] if fitting else ""


def _parsed(text: str) -> tuple[str, Operator]:
    axis, _, name = text.strip().rpartition("=")
    axis = axis.strip().replace("-", "_")
    operator = operator_named(name.strip())
    if axis and axis not in operator.axes:
        raise EngineError(
            "expansion.operator",
            f"The operator {operator.name} does not grow {axis[:40]}.",
            cause=f"It grows {', '.join(operator.axes)}.",
            next_step=f"For {axis[:40]} there are: {', '.join(_growing(axis)) or 'none; axes are ' + ', '.join(AXES)}.",
        )
    return axis, operator


def _growing(axis: str) -> list[str]:
    return sorted(name for name, operator in OPERATORS.items() if axis in operator.axes)


def _without_effect(operator: Operator, only: str, changed: tuple[str, ...]) -> EngineError:
    grows = only or ", ".join(operator.axes)
    return EngineError(
        "expansion.operator",
        f"The operator {operator.name} would do nothing here.",
        cause=f"It grows {grows}; what changes here is {', '.join(changed) or 'nothing'}.",
        next_step=f"Leave it out, or ask for a larger size of {grows}.",
    )


def inexact_axes(plan: ExpansionPlan) -> tuple[str, ...]:
    """The axes whose operator does not keep the function for this plan's sizes."""
    return tuple(
        axis
        for axis, name in plan.operators.items()
        if not operator_named(name).exact_for(axis, plan.before, plan.after)
    )


def is_exact(plan: ExpansionPlan) -> bool:
    """Whether every operator of the plan keeps the function."""
    return not inexact_axes(plan)


def losses(plan: ExpansionPlan) -> tuple[str, ...]:
    """What the plan's operators do not preserve, a sentence each."""
    sentences = []
    for name in dict.fromkeys(plan.operators[axis] for axis in inexact_axes(plan)):
        operator = operator_named(name)
        sentences.append(f"{operator.title[:1].upper()}{operator.title[1:]}: {operator.loses}")
    return tuple(sentences)
