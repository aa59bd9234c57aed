"""What was decided about large text to train on: sources with weights, how much, stages, limits, processes. No widgets.

Owns these choices, their file, and laying them over a spec. Must not read text (the `corpus` command does), nor know
what anything takes (the engine estimates the finished spec).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.advise.text_spec import GENERAL, LOOKS, SPIKE_FACTOR, source_name
from engine.errors import EngineError
from engine.jobs.spec_growth import SIZES, ExpansionSection, StageSection
from engine.jobs.spec_stream import HUB, SourceSection
from engine.jobs.spec_suites import RetentionSection, SuiteSection

if TYPE_CHECKING:
    from engine.advise.grown import Grown
    from engine.advise.matrix import ApproachRow
    from engine.advise.spec_stages import JobEstimate
    from engine.corpus.report import SourceReport
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec

    TextKey = tuple["TextChoice", str, Machine | None, Grown | None, Mapping[str, float], int]
    """Choice, approach, machine, growth, sizes of sources, tokens to train on."""

WEIGHT_STEP = 0.1
MOST_WEIGHT = 100.0


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was decided; what is left alone stays as the program would have it."""

    sources: tuple[SourceSection, ...] = ()
    tokens: int = 0
    """To train on; 0: every token once, as far as they were counted."""
    stages: tuple[StageSection, ...] = ()
    """Empty: one stretch of training."""
    general: bool = True
    """Follow the perplexity of plain English too."""
    tasks: tuple[str, ...] = ()
    """Benchmarks."""
    tasks_meanwhile: bool = True
    """Ask a part of them while training."""
    gates: tuple[RetentionSection, ...] = ()
    spikes: bool = True
    """Go back where the loss leaps."""
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check of a source found."""

    report: SourceReport | None
    problem: EngineError | None = None


@dataclass(slots=True)
class TextPlan:
    """The choice and what is known about its sources."""

    choice: TextChoice = field(default_factory=TextChoice)
    checks: dict[SourceSection, Checked | None] = field(default_factory=dict)
    """By the source with weight 1; None while it is being read."""
    model: str = ""
    """Whose tokenizer counted."""
    answered_tokens: int = 0
    """About how much text there is, as it was answered before any was read."""
    laid_out: tuple[TextKey, JobEstimate] | None = None
    """The newest estimate, and what it was made for."""

    # ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def sources(self) -> tuple[SourceSection, ...]:
        return self.choice.sources

    def add(self, path: str) -> int:
        """A source at the end, called after its file; returns its place. Raises EngineError for a path that is none."""
        section = SourceSection(name=source_name(path, [one.name for one in self.sources]), path=_written(path))
        self._take(sources=(*self.sources, section))
        return len(self.sources) - 1

    def change(self, place: int, **values: object) -> None:
        """Change fields of a source. Raises EngineError when they cannot be."""
        old = self.sources[place]
        if "path" in values:
            values["path"] = _written(str(values["path"]))
        if "name" in values and any(values["name"] == one.name for one in self.sources if one is not old):
            raise EngineError(
                "text.name_taken", f"There is a source called {values['name']} already.", next_step="Choose another."
            )
        new = _checked_source(msgspec.structs.asdict(old) | values)
        self._take(sources=(*self.sources[:place], new, *self.sources[place + 1 :]))
        if new.name != old.name:
            self._rename_in_stages(old.name, new.name)

    def weigh(self, place: int, by: float) -> None:
        """More or less of a source; never below 0."""
        weight = min(max(round(self.sources[place].weight + by, 4), 0.0), MOST_WEIGHT)
        self.change(place, weight=weight)

    def weigh_by_size(self) -> bool:
        """As much of each source as there is of it; False while a size is unknown."""
        sizes = [self.tokens_of(source) for source in self.sources]
        if not sizes or not all(sizes):
            return False
        for place, size in enumerate(sizes):
            self.change(place, weight=round(size / sum(sizes), 4) or 0.0001)
        return True

    def remove(self, place: int) -> None:
        """Leave a source out, in every stage too."""
        name = self.sources[place].name
        self._take(sources=(*self.sources[:place], *self.sources[place + 1 :]))
        stages = []
        for stage in self.choice.stages:
            weights = stage.weights
            if weights is not None:
                kept = {source: weight for source, weight in weights.items() if source != name}
                weights = kept if any(kept.values()) else None
            stages.append(msgspec.structs.replace(stage, weights=weights))
        self._take(stages=tuple(stages), gates=tuple(gate for gate in self.choice.gates if gate.on != name))

    def share(self, place: int) -> float:
        """Of the tokens trained on."""
        total = sum(source.weight for source in self.sources)
        return self.sources[place].weight / total if total else 0.0

    def _rename_in_stages(self, old: str, new: str) -> None:
        stages = tuple(
            stage
            if stage.weights is None
            else msgspec.structs.replace(stage, weights={new if k == old else k: w for k, w in stage.weights.items()})
            for stage in self.choice.stages
        )
        gates = tuple(msgspec.structs.replace(gate, on=new) if gate.on == old else gate for gate in self.choice.gates)
        self._take(stages=stages, gates=gates)

    def _take(self, **values: object) -> None:
        self.choice = msgspec.structs.replace(self.choice, **values)

    def decide(self, **values: object) -> None:
        """Change anything else of the choice."""
        self._take(**values)

    # ── what is known ────────────────────────────────────────────────────────────────────────────────────────────
    def known(self, source: SourceSection) -> Checked | None:
        """What the check found; None before it has answered."""
        return self.checks.get(_unweighed(source))

    def unread(self) -> tuple[SourceSection, ...]:
        """Sources that nobody has begun to read."""
        return tuple(source for source in self.sources if _unweighed(source) not in self.checks)

    def begin_check(self, source: SourceSection) -> None:
        """It is being read."""
        self.checks[_unweighed(source)] = None

    def end_check(self, source: SourceSection, found: Checked) -> None:
        """The command has answered."""
        self.checks[_unweighed(source)] = found

    def forget_checks(self, model: str) -> None:
        """Another tokenizer counts otherwise."""
        if model != self.model:
            self.model, self.checks = model, {}

    def tokens_of(self, source: SourceSection) -> int:
        """That it has to train on, in one pass; 0 while unknown."""
        found = self.known(source)
        return found.report.kept.tokens if found is not None and found.report is not None else 0

    @property
    def sizes(self) -> Mapping[str, float]:
        """Tokens by source, of those that are known."""
        return {source.name: float(size) for source in self.sources if (size := self.tokens_of(source))}

    @property
    def known_tokens(self) -> int:
        """To train on: as chosen, else every counted token once; 0 while nothing is counted."""
        return self.choice.tokens or sum(self.tokens_of(source) for source in self.sources if source.weight)

    @property
    def wanted_tokens(self) -> int:
        """To train on: as known, else as the question about data was answered."""
        return self.known_tokens or self.answered_tokens

    @property
    def obstacle(self) -> str:
        """Why it cannot go on; "" when it can."""
        if not self.sources:
            return "There is no source yet."
        if not any(source.weight for source in self.sources):
            return "All weights are 0: there would be nothing to train on."
        for source in self.sources:
            found = self.known(source)
            if source.weight and found is not None and found.problem is not None:
                return f"{source.name}: {found.problem.what}"
        return ""

    # ── the spec ─────────────────────────────────────────────────────────────────────────────────────────────────
    def applied(self, spec: JobSpec) -> JobSpec:
        """`spec` trained on this text instead of rows. Raises EngineError for what cannot go together."""
        choice = self.choice
        stages, expansion = self._stages(spec)
        training = msgspec.structs.replace(spec.training, max_tokens=self.wanted_tokens, max_steps=0)
        steps = self._steps(spec)
        every = max(steps // LOOKS, 1)
        return msgspec.structs.replace(
            spec,
            data=msgspec.structs.replace(spec.data, train="demo", heldout="", packing=True),
            sources=choice.sources,
            suites=(SuiteSection(name=GENERAL, path=GENERAL),) if choice.general else (),
            retention=choice.gates,
            training=training,
            stages=stages,
            expansion=expansion,
            evaluation=msgspec.structs.replace(
                spec.evaluation,
                every_steps=every,
                early_stop_patience=0,
                exact_match_rows=0,
                sample_prompts=(),
                tasks=choice.tasks,
                tasks_every_steps=every if choice.tasks and choice.tasks_meanwhile else 0,
            ),
            checkpoint=msgspec.structs.replace(spec.checkpoint, every_steps=min(every, 500)),
            stop=msgspec.structs.replace(spec.stop, spike_factor=SPIKE_FACTOR if choice.spikes else 0.0),
            distributed=msgspec.structs.replace(spec.distributed, processes=choice.processes),
        )

    def job(self, key: TextKey) -> JobEstimate | None:
        """The estimate for that very choice; None before it is made."""
        return self.laid_out[1] if self.laid_out is not None and self.laid_out[0] == key else None

    def promised(self, spec: JobSpec, key: TextKey) -> JobSpec:
        """With the prediction of all its stages, once they were laid out."""
        from engine.advise.spec_plan import prediction_of

        job = self.job(key)
        return spec if job is None else msgspec.structs.replace(spec, prediction=prediction_of(job.whole))

    def row(self, row: ApproachRow, key: TextKey) -> ApproachRow:
        """The matrix row with the figures of all stages in place of one's."""
        job = self.job(key)
        if job is None:
            return row
        whole = job.whole
        on_gpu = not whole.plan.devices.on_cpu
        return replace(
            row,
            vram=whole.memory if on_gpu else row.vram,
            ram=whole.ram,
            hours=whole.hours,
            cost_usd=whole.cost_usd,
            disk=whole.disk,
            verdict=whole.verdict,
            verdict_reason=whole.judgement.reason,
            appraisal=whole,
        )

    def _steps(self, spec: JobSpec) -> int:
        training = spec.training
        per_step = training.batch_size * training.gradient_accumulation * spec.data.max_length
        return max(self.wanted_tokens // max(per_step, 1), 1)

    def _stages(self, spec: JobSpec) -> tuple[tuple[StageSection, ...], ExpansionSection]:
        """Stages, with the growth of the whole job as the first one's: only one of both may say how to grow."""
        stages, expansion = self.choice.stages, spec.expansion
        if not stages or spec.task.trains_adapter or not expansion.grows:
            return (() if spec.task.trains_adapter else stages), expansion
        own = {name: getattr(expansion, name) for name in (*SIZES, "to", "operators")}
        first = stages[0] if stages[0].grows else msgspec.structs.replace(stages[0], **own)
        bare = msgspec.structs.replace(expansion, to="", operators=(), **dict.fromkeys(SIZES, 0))
        return (first, *stages[1:]), bare


def _unweighed(source: SourceSection) -> SourceSection:
    return msgspec.structs.replace(source, weight=1.0)


def _written(path: str) -> str:
    """A path as a spec holds it. Raises EngineError for a file that is not there."""
    text = path.strip()
    if not text:
        raise EngineError("text.no_path", "No path was given.", next_step="Type a file, a folder or hub:owner/name.")
    if text.startswith(HUB):
        return text
    full = str(Path(text).expanduser().absolute())
    if any(sign in full for sign in "*?["):
        return full
    if not Path(full).exists():
        raise EngineError(
            "text.not_found",
            f"There is no file or folder {full}.",
            next_step='Type a path, a pattern such as "text/*.jsonl.gz", or hub:owner/name.',
        )
    return full


def _checked_source(values: Mapping[str, object]) -> SourceSection:
    try:
        return msgspec.convert(dict(values), SourceSection)
    except msgspec.ValidationError as error:
        raise EngineError(
            "text.source", "That is not possible for a source.", cause=str(error), next_step="Type it again."
        ) from error


# ── kept between starts ──────────────────────────────────────────────────────────────────────────────────────────
def _kept_at() -> Path:
    from engine.paths import state_home

    return state_home() / "text.json"


def keep(choice: TextChoice) -> None:
    """Write the choice beside the answers; a disk that is full or read-only only loses this convenience."""
    from engine.jobs.layout import write_atomic

    with contextlib.suppress(EngineError, OSError):
        _kept_at().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_kept_at(), msgspec.json.format(msgspec.json.encode(choice)) + b"\n")


def kept() -> TextChoice:
    """The choice of the last time; an empty one where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(_kept_at().read_bytes(), type=TextChoice)
    except (OSError, msgspec.MsgspecError):
        return TextChoice()
