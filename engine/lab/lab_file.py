"""A lab as a file: which approaches are held against each other, on what, for how much, and what decides.

Owns the fields, their limits and meanings, and reading them with file, line and key in every refusal. Must not know how
arms are sized (`engine.lab.sizing`) or run (`engine.lab.drive`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engine.errors import EngineError
from engine.jobs.spec import JobSpec, Task
from engine.jobs.spec_checks_evaluation import may_be_measured
from engine.jobs.spec_section import Section
from engine.lab.figures import OTHER_SCORES, Figure, parse_figure
from engine.profiles import allowed_words, load_toml
from engine.toml_lines import key_path, line_of, numbered_from_one

LAB_VERSION = 1
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,59}$"
_BY_THE_LAB = ("max_steps", "max_tokens", "epochs", "seed", "ramp_from")
"""Keys of [training] that the budget and the seeds decide."""


SHARED = ("model", "data", "sources", "stream", "suites", "evaluation.tasks", "evaluation.tasks_limit")
"""What all arms train and are measured on."""


class BudgetKind(StrEnum):
    TOKENS = "tokens"
    FLOPS = "flops"
    WALL_CLOCK = "wall-clock"


class Start(StrEnum):
    MODEL = "model"
    RANDOM = "random"


class BudgetSection(Section, frozen=True, kw_only=True):
    """What every arm is given, with every seed."""

    kind: Annotated[
        BudgetKind, Meta(description="tokens, flops (of training, counted), or wall-clock (seconds of training).")
    ]
    amount: Annotated[float, Meta(gt=0, description="So many tokens, floating-point operations, or seconds.")]


class GoalSection(Section, frozen=True, kw_only=True):
    """One question to the arms, and the figure that answers it."""

    name: Annotated[str, Meta(min_length=1, max_length=60, description='As the report calls it: "learn the task".')]
    figure: Annotated[
        str,
        Meta(
            description="task_loss, exact_match, base_perplexity (forgetting), suite:NAME (bits per byte), "
            "benchmark:TASK, retention:NAME, or a cost: flops, tokens, hours, usd."
        ),
    ]
    per: Annotated[
        str,
        Meta(pattern="^(|flops|tokens|hours|usd)$", description="What the model gained, divided by that cost."),
    ] = ""
    reach: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Of a cost: what was spent until the held-out loss first fell to this."),
    ] = None
    matters: Annotated[float, Meta(ge=0.0, description="A smaller difference is no win, however certain it is.")] = 0.0


class ArmSection(Section, frozen=True, kw_only=True):
    """One approach: what differs from [spec]."""

    name: Annotated[str, Meta(min_length=1, max_length=48, description="As tables and curves call it.")]
    start: Annotated[
        Start, Meta(description="model: the weights as they are (and grown); random: the same shape, random weights.")
    ] = Start.MODEL
    initialisation: Annotated[
        str,
        Meta(
            pattern="^(library|identity)$",
            description="random only: library (transformers' own) or identity (layers that start as the identity).",
        ),
    ] = "library"
    approach: Annotated[
        str, Meta(description="The row of the comparison matrix that this arm is an example of; only for the record.")
    ] = ""
    spec: Annotated[dict[str, Any], Meta(description="Keys of a spec that this arm sets.")] = {}  # noqa: RUF012


class LabFile(Section, frozen=True, kw_only=True):
    """Everything but where the runs go."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="Names the lab's folder.")]
    title: Annotated[str, Meta(min_length=1, max_length=80)]
    question: Annotated[str, Meta(description="What the lab is to find out, for people.")] = ""
    version: Annotated[int, Meta(ge=LAB_VERSION, le=LAB_VERSION, description="Format of this file.")] = LAB_VERSION
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(min_length=1, max_length=64, description="Every arm runs with each; two or more give intervals."),
    ] = (1, 2, 3)
    different: Annotated[
        tuple[str, ...],
        Meta(
            description="Keys that arms may set differently though figures are then not of the same thing, such as "
            "data.max_length; the report says so."
        ),
    ] = ()
    points: Annotated[int, Meta(ge=1, le=200, description="Held-out evaluations per run, for the curves.")] = 8
    budget: BudgetSection
    goals: Annotated[tuple[GoalSection, ...], Meta(min_length=1)]
    arms: Annotated[tuple[ArmSection, ...], Meta(min_length=2, max_length=40)]
    spec: Annotated[dict[str, Any], Meta(description="What all arms share: the keys of a spec.")] = {}  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm, checked: its spec still lacks steps and seed."""

    name: str
    start: Start
    initialisation: str
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that was read and checked."""

    file: LabFile
    path: Path
    text: str
    arms: tuple[Arm, ...]

    @property
    def base(self) -> Path:
        """What relative file names in it are relative to."""
        return self.path.parent


def load_lab(path: Path) -> Lab:
    """Raises EngineError `toml.*`, `lab.*` or `spec.*`, naming file, line and key."""
    path = Path(path)
    file = load_toml(path, LabFile, what="lab")
    reader = _Reader(path, path.read_text(encoding="utf-8"), file)
    return Lab(file, path, reader.text, reader.arms())


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: tables are merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged(before, value)
        result[key] = value
    return result


class _Reader:
    """Checks what the fields of a lab must say together."""

    def __init__(self, path: Path, text: str, file: LabFile) -> None:
        self.path, self.text, self.file = path, text, file

    def arms(self) -> tuple[Arm, ...]:
        """All of them. Raises EngineError."""
        seen: set[str] = set()
        for number, section in enumerate(self.file.arms, 1):
            if section.name in seen:
                raise self._refused(f"arms[{number}].name", f"two arms are called '{section.name}'.", "lab.twice")
            seen.add(section.name)
        if len(set(self.file.seeds)) != len(self.file.seeds):
            raise self._refused("seeds", "a seed is named twice.", "lab.twice")
        arms = tuple(self._arm(number, section) for number, section in enumerate(self.file.arms, 1))
        self._check_same_ground(arms)
        for number, goal in enumerate(self.file.goals, 1):
            self._check_goal(f"goals[{number}]", goal, arms)
        return arms

    def _arm(self, number: int, section: ArmSection) -> Arm:
        for place, tree in (("spec", self.file.spec), (f"arms[{number}].spec", section.spec)):
            training = tree.get("training")
            if not isinstance(training, Mapping):
                continue
            for key in _BY_THE_LAB:
                if key in training:
                    what = f"training.{key} is decided by the lab: by its budget, or by its seeds."
                    raise self._refused(f"{place}.training.{key}", what, "lab.decided")
        spec = self._converted(number, section)
        self._check_arm(f"arms[{number}]", section, spec)
        return Arm(section.name, section.start, section.initialisation, spec)

    def _converted(self, number: int, section: ArmSection) -> JobSpec:
        try:
            return msgspec.convert(merged(self.file.spec, section.spec), JobSpec, strict=True)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            named = message.split("`")[1:2] if "unknown field" in message else []
            key = ".".join(filter(None, (numbered_from_one(where.rstrip("`").lstrip(".")), *named)))
            what = f"arm '{section.name}', key '{key}': {message.replace('Object', 'It')}"
            allowed = allowed_words(JobSpec, key) if key else ""
            what += f"; allowed: {allowed}." if allowed else "."
            raise self._refused(self._place(number, section, key), what, "lab.value") from error
        except EngineError as error:
            what = f"arm '{section.name}': {error.what}"
            raise self._refused(self._place(number, section, error.key), what, error.code, error) from error

    @staticmethod
    def _place(number: int, section: ArmSection, key: str) -> str:
        """Where `key` of a spec is set: by the arm itself, else in the part that all share."""
        if not key:
            return f"arms[{number}]"
        return f"arms[{number}].spec.{key}" if _is_set(section.spec, key) else f"spec.{key}"

    def _check_arm(self, place: str, section: ArmSection, spec: JobSpec) -> None:
        """Raises EngineError for what no lab can size or start."""
        if not spec.needs_data:
            what = f"arm '{section.name}' trains nothing (task = \"{spec.task.value}\")."
            raise self._refused(f"{place}.spec.task", what, "lab.no_training")
        if section.start is Start.RANDOM and (spec.stages or spec.task is not Task.FULL):
            what = (
                f"arm '{section.name}' starts at random, so everything has to learn: task = \"full\" without "
                "[[stages]]; its shape is that after [expansion]."
            )
            raise self._refused(f"{place}.start", what, "lab.random")
        for number, stage in enumerate(spec.stages, 1):
            for key in _BY_THE_LAB:
                if key != "max_steps" and getattr(stage, key, None):
                    what = f"arm '{section.name}': stages[{number}].{key} is decided by the lab; give max_steps."
                    raise self._refused(f"{place}.spec.stages[{number}].{key}", what, "lab.decided")
            if spec.task_of(stage).trains and not stage.max_steps:
                what = (
                    f"arm '{section.name}': stage {number} needs max_steps; the lab keeps the proportions of the "
                    "stages and scales them to the budget."
                )
                raise self._refused(f"{place}.spec.stages[{number}]", what, "lab.stages")

    def _check_same_ground(self, arms: tuple[Arm, ...]) -> None:
        """Raises EngineError for arms that train or are measured on something else, unless the lab says that it is
        meant."""
        for stated in self.file.different:
            if not any(stated == key or stated.startswith(f"{key}.") for key in SHARED):
                what = f'"{stated}" is nothing that arms share; different takes {", ".join(SHARED)}, or a key of one.'
                raise self._refused("different", what, "lab.different")
        for number, arm in enumerate(arms[1:], 2):
            for key in differing(arms[0].spec, arm.spec):
                if key not in self.file.different and key.partition(".")[0] not in self.file.different:
                    odd, section = number, self.file.arms[number - 1]
                    if not _is_set(section.spec, key) and _is_set(self.file.arms[0].spec, key):
                        odd, section = 1, self.file.arms[0]
                    what = (
                        f"arm '{arm.name}' has another {key} than arm '{arms[0].name}', so their figures are not of "
                        f'the same thing. Give both the same, or state it: different = ["{key}"].'
                    )
                    raise self._refused(self._place(odd, section, key), what, "lab.different")

    def _check_goal(self, place: str, goal: GoalSection, arms: tuple[Arm, ...]) -> None:
        try:
            figure = parse_figure(goal.figure)
        except EngineError as error:
            raise self._refused(f"{place}.figure", error.what, error.code, error) from error
        if goal.reach is not None and not figure.is_cost:
            raise self._refused(f"{place}.reach", "reach goes with a cost: flops, tokens, hours or usd.", "lab.goal")
        if goal.per and (figure.is_cost or figure.kind == "retention"):
            what = f"per goes with what a model can do, not with {goal.figure}."
            raise self._refused(f"{place}.per", what, "lab.goal")
        for arm in arms:
            missing = _missing_for(goal, figure, arm.spec)
            if missing:
                what = f"goal '{goal.name}' needs {missing} in arm '{arm.name}'."
                raise self._refused(f"{place}.figure", what, "lab.goal")

    def _refused(self, key: str, what: str, code: str, because: EngineError | None = None) -> EngineError:
        line = line_of(self.text, key)
        next_step = because.next_step if because else ""
        return EngineError(
            code,
            f"{self.path}: {f'line {line}, ' if line else ''}{what}",
            cause=because.cause if because else "",
            next_step=next_step or "Correct that place of the lab.",
        )


def _is_set(tree: Any, key: str) -> bool:
    for part in key_path(key):
        if isinstance(part, int):
            if not (isinstance(tree, list) and part <= len(tree)):
                return False
            tree = tree[part - 1]
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        else:
            return False
    return True


def differing(first: JobSpec, second: JobSpec) -> list[str]:
    """Which of SHARED are not equal: whole lists, single keys of sections."""
    found = []
    for key in SHARED:
        here, there = (_at(spec, key) for spec in (first, second))
        if here == there:
            continue
        if isinstance(here, msgspec.Struct):
            found += [f"{key}.{one}" for one in here.__struct_fields__ if getattr(here, one) != getattr(there, one)]
        else:
            found.append(key)
    return found


def _at(spec: JobSpec, key: str) -> Any:
    found: Any = spec
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _missing_for(goal: GoalSection, figure: Figure, spec: JobSpec) -> str:
    """What the spec lacks so that the figure is measured; "" when nothing."""
    named = {suite.name for suite in spec.suites} | {source.name for source in spec.sources}
    if figure.kind in ("benchmark", *OTHER_SCORES) and (figure.name in named or not may_be_measured(spec, figure.name)):
        return f"'{figure.name}' in evaluation.tasks"
    if figure.kind == "suite" and figure.name not in named:
        return f"a suite or source called '{figure.name}'"
    if figure.kind == "retention" and not may_be_measured(spec, figure.name):
        return f"a suite, source or benchmark called '{figure.name}'"
    if figure.kind == "base_perplexity" and not spec.data.base_text:
        return "data.base_text"
    if "usd" in (goal.figure, goal.per) and not spec.usd_per_hour:
        return "cost.usd_per_hour or usd_per_kwh"
    if figure.kind == "exact_match" and not spec.evaluation.exact_match_rows:
        return "evaluation.exact_match_rows"
    return ""
