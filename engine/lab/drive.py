"""Carrying a lab out: every arm with every seed as an ordinary run, one after the other, whatever happened before.

Owns the order and going on: finished runs are kept, live ones are followed, interrupted ones are resumed, missing ones
are started. Must not know how a run is watched or checked (a `Front` does) nor what its figures mean.
Seeds are the outer loop, so that a lab that was interrupted has complete pairs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec

import engine
from engine.errors import EngineError, ExitCode
from engine.hardware.detect import detect
from engine.jobs import events as ev
from engine.jobs import lock
from engine.jobs.control import resume
from engine.jobs.journal import JournalTail
from engine.jobs.launch import child_environment, launch, module_command
from engine.jobs.spec import EvaluationSection, JobSpec, StopSection
from engine.jobs.spec_growth import STOP_OVERRIDES
from engine.jobs.state import RunPhase
from engine.jobs.store import create_run, load_state
from engine.lab.folder import LOG, RANDOM, LabFolder, Record
from engine.lab.lab_file import Arm, BudgetKind, Lab, Start
from engine.lab.sizing import ArmSize, Counter, Sizes, sizes_of, spec_for

TIMING_STEPS = 8
"""Of the short run that measures a step, where the budget is in seconds."""
LEAVING_SECONDS = 30.0
TIMING = "timing"
"""Stands for the seed of such a run in the log."""
_TIMING_SEED = -1


class Front(Protocol):
    """What a front end gives to a lab."""

    def check(self, spec: JobSpec) -> JobSpec:
        """Hold a spec against this machine; returns it with the prediction. Raises EngineError."""

    def follow(self, run_dir: Path) -> bool:
        """Show a live run until it ends; False when the user wants the lab to stop here."""

    def say(self, text: str) -> None:
        """One line."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a lab is."""

    finished: int
    failed: int
    total: int
    interrupted: bool

    @property
    def complete(self) -> bool:
        return self.finished == self.total


def carry_out(lab: Lab, folder: LabFolder, front: Front) -> Outcome:
    """Do what is left of the lab; a failed arm does not keep the others from running. Raises EngineError for what
    concerns the lab as a whole."""
    with folder.held():
        return _Drive(lab, folder, front).run()


class _Drive:
    def __init__(self, lab: Lab, folder: LabFolder, front: Front) -> None:
        self.lab, self.folder, self.front = lab, folder, front
        self.counter = Counter(lab)
        self.interrupted = False

    def run(self) -> Outcome:
        sizes = self._sizes()
        if sizes is None:
            return self._outcome()
        for seed in self.lab.file.seeds:
            for arm in self.lab.arms:
                self._arm(arm, sizes.of(arm.name), seed)
                if self.interrupted:
                    return self._outcome()
        return self._outcome()

    def _outcome(self) -> Outcome:
        runs = self.folder.runs()
        wanted = [(arm.name, seed) for seed in self.lab.file.seeds for arm in self.lab.arms]
        states = [load_state(runs[key]).state for key in wanted if key in runs]
        finished, failed = states.count(RunPhase.FINISHED), states.count(RunPhase.FAILED)
        return Outcome(finished, failed, len(wanted), self.interrupted)

    # ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _sizes(self) -> Sizes | None:
        """As decided when the lab began, else decided now; None when the user interrupted a timing run."""
        record = self.folder.record()
        if record is not None:
            self.folder.begin(self.lab, record)  # goals or seeds may have been added since
            return record.sizes
        seconds: dict[str, float] = {}
        if self.lab.file.budget.kind is BudgetKind.WALL_CLOCK:
            for arm in self.lab.arms:
                measured = self._step_seconds(arm)
                if measured is None:
                    return None
                seconds[arm.name] = measured
        sizes = sizes_of(self.lab, self.counter, seconds or None)
        machine, version = detect().label, str(getattr(engine, "__version__", ""))
        self.folder.begin(self.lab, Record(created=time.time(), machine=machine, program_version=version, sizes=sizes))
        return sizes

    def _step_seconds(self, arm: Arm) -> float | None:
        """Seconds of a step of `arm`, from a short run of it; None when the user interrupted. Raises EngineError."""
        size = self.counter.count(arm)
        least = min(stage.share for stage in size.stages)
        stages = tuple(replace(stage, steps=TIMING_STEPS * stage.share // least) for stage in size.stages)
        short = ArmSize(size.name, stages)
        spec = _unmeasured(self._spec(arm, short, self.lab.file.seeds[0]))
        run_dir = self._follow_through(f"{arm.name}, {TIMING}", (arm.name, _TIMING_SEED), spec)
        if run_dir is None:
            return None
        steps = [event.step_seconds for event in JournalTail(run_dir).stream() if isinstance(event, ev.Step)]
        if len(steps) < 2:
            raise EngineError(
                "lab.no_timing",
                f"The short run of arm '{arm.name}' that was to measure its steps did not finish.",
                cause=load_state(run_dir).what,
                next_step=f"See it with `scaler-wizard logs {run_dir.name}`.",
                exit_code=ExitCode.RUN_FAILED,
            )
        return statistics.fmean(steps[1:])  # the first one pays for kernels and memory

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _arm(self, arm: Arm, size: ArmSize, seed: int) -> None:
        try:
            key = (arm.name, seed)
            known = self.folder.runs().get(key)
            spec = None if known is not None else self._spec(arm, size, seed)
            self._follow_through(f"{arm.name}, seed {seed}", key, spec)
        except EngineError as error:
            if self.interrupted or error.code in ("home.unwritable", "disk.full"):
                raise
            self.front.say(f"{arm.name}, seed {seed}: {error.what} {error.cause} {error.next_step}".rstrip())

    def _spec(self, arm: Arm, size: ArmSize, seed: int) -> JobSpec:
        folder = self._random_model(arm, seed) if arm.start is Start.RANDOM else None
        return spec_for(self.lab, arm, size, seed, folder)

    def _follow_through(self, label: str, key: tuple[str, int], spec: JobSpec | None) -> Path | None:
        """The run of `key`, brought to its end; None when the user interrupted."""
        run_dir = self.folder.runs().get(key)
        if run_dir is None:
            assert spec is not None
            self.front.say(f"== {label}")
            run_dir = create_run(self.front.check(spec))
            self.folder.note_run(*key, run_dir)
            launch(run_dir)
        else:
            state = load_state(run_dir).state
            if state is RunPhase.FINISHED:
                return run_dir
            self.front.say(f"== {label}: {'goes on' if state.is_live else f'was {state.value}, resumed'}")
            if not state.is_live:
                _let_go(run_dir)
            if not state.is_live or state is RunPhase.QUEUED:
                resume(run_dir)
        if not self.front.follow(run_dir):
            self.interrupted = True
            return None
        _let_go(run_dir)  # the next run gets the machine for itself
        return run_dir

    def _random_model(self, arm: Arm, seed: int) -> Path:
        """The folder of random weights in the shape the arm's growth would reach, made where it is missing."""
        target = self.folder.random_model(arm.name, seed)
        if (target / "config.json").is_file():
            return target
        ref, _ = self.counter.model_of(self.counter.located(arm.spec))
        growth = self.counter.growth_of(arm)
        config = dict(growth.config if growth is not None else ref.config)
        (self.folder.path / RANDOM).mkdir(exist_ok=True)
        description = target.with_name(target.name + ".config.json")
        description.write_text(json.dumps(config))
        arguments = ["--config", str(description), "--tokenizer", str(ref.path), "--out", str(target)]
        arguments += ["--seed", str(seed), "--way", arm.initialisation]
        _helper("engine.train.random_model", arguments, self.folder.path / LOG)
        description.unlink()
        return target


def _let_go(run_dir: Path) -> None:
    """Wait until the runner of a run that has ended is gone, which takes a moment; a stuck one is left alone."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while lock.is_held(run_dir) and time.monotonic() < deadline:
        time.sleep(0.02)


def _unmeasured(spec: JobSpec) -> JobSpec:
    """The same steps with nothing beside them, and no rule that could end them."""
    change = msgspec.structs.replace
    evaluation = EvaluationSection(exact_match_rows=0, max_new_tokens=1)
    stages = tuple(change(stage, **{f"stop_{rule}": None for rule in STOP_OVERRIDES}) for stage in spec.stages)
    name = f"{spec.name.rpartition(', seed')[0]}, {TIMING}"
    return change(spec, name=name, evaluation=evaluation, suites=(), retention=(), stop=StopSection(), stages=stages)


def _helper(module: str, arguments: list[str], log: Path) -> None:
    """Run a module of ours that needs torch. Raises the EngineError it printed, or `lab.helper`."""
    environment = child_environment() | {"PYTHONUNBUFFERED": "1"}
    with log.open("ab") as errors:
        done = subprocess.run(
            [*module_command(module), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=os.fspath(log.parent),
            check=False,
        )
    for line in done.stdout.splitlines():
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        if isinstance(tree, dict) and isinstance(tree.get("error"), dict):
            told = {key: str(tree["error"].get(key, "")) for key in ("code", "what", "cause", "next_step")}
            raise EngineError(told.pop("code"), told.pop("what"), **told, exit_code=ExitCode.RUN_FAILED)
    if done.returncode:
        raise EngineError(
            "lab.helper",
            f"{module} ended with exit code {done.returncode}.",
            cause=f"Its words are in {log}.",
            exit_code=ExitCode.RUN_FAILED,
        )
