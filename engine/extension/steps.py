"""The parts of an extension that need torch: race, search, check of the folder, evaluation; each in its own process.

Owns their command lines and what they leave behind. Must not know the order of the steps, nor import what they run.
All of them log as they go and go on from their log.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from engine.context.certificate import FolderCheck, Race
from engine.context.factors import Factors, read_factors
from engine.errors import EngineError, ExitCode
from engine.extension.staging import CHECK, EVALUATION, MODEL, RACE, REPORT, SEARCH, Order
from engine.jobs.length_report import LengthReport
from engine.jobs.race_lines import (
    RaceDecided,
    RaceProgress,
    RaceRow,
    SearchDone,
    SearchStarted,
    SearchStep,
    decode_line,
)
from engine.surgery.helpers import Failing, Hear, Progress, Report, run_module

_FAILING = Failing(
    "extension.helper_failed",
    "Use --resume to try that step again; what was measured is kept.",
    own_exit_code=True,
    patience_seconds=2.0,  # every figure is in a log before the next is begun
)
QUICK_PROMPTS = 2
_APART = 1000
"""From a report's seed to that of the race: a winner is not judged on the questions that it was picked on."""


def race_seed(seed: int) -> int:
    """The seed of the race's questions where reports have `seed`."""
    return seed + _APART


@dataclass(frozen=True, slots=True)
class Measuring:
    """What the measuring processes are told."""

    source: Path
    target: int
    folder: Path
    """Where logs and results go."""
    report: Report
    hear: Hear | None = None
    """Gets the lines of race and search as they are printed."""
    text: str = ""
    seed: int = 17
    prompts: int = 0
    quick: bool = False
    log: Path | None = None
    """Of race and search, elsewhere than in `folder`."""
    name: str = ""
    """What reports call the model."""
    lengths: tuple[int, ...] = ()
    """Of the report; empty leaves them to the evaluation."""
    needles: bool = True
    """Whether the report asks for needles."""
    dtype: str = "auto"
    quantization: str = "none"

    @property
    def searched_log(self) -> Path:
        """Of a search that goes before a race."""
        return self.folder / SEARCH if self.log is None else self.log.with_name(f"{self.log.stem}.search.jsonl")

    def loading(self) -> list[str]:
        """Arguments that say how the model is loaded."""
        words = ["--dtype", self.dtype] if self.dtype != "auto" else []
        return [*words, "--quantization", self.quantization] if self.quantization != "none" else words

    def common(self) -> list[str]:
        """Arguments that all of them take."""
        words = ["--seed", str(self.seed), *self.loading()]
        if self.text:
            words += ["--text", self.text]
        return words


@dataclass(slots=True)
class _Race:
    """What the race's lines said; mutable: they are folded in as they come."""

    rows: dict[str, RaceRow] = field(default_factory=dict)
    decided: RaceDecided | None = None


def race(measuring: Measuring, methods: tuple[str, ...] = (), factors: Path | None = None) -> Race:
    """Measure methods on the source, those that need a search with `factors`; questions have `race_seed`.

    Raises the EngineError of the process, `extension.helper_failed`, or
    `context.no_winner`."""
    found = _Race()

    def hear(raw: bytes) -> None:
        line = decode_line(raw)
        if isinstance(line, RaceRow):
            found.rows[line.method] = line
        elif isinstance(line, RaceDecided):
            found.decided = line
        elif isinstance(line, RaceProgress):
            measuring.report(Progress("race", line.done, line.total, f"{line.method} {line.what}".strip()))
        if measuring.hear is not None:
            measuring.hear(raw)

    measuring.report(Progress("race", 0, 0, "loading the model"))
    words = ["race", "--model", str(measuring.source), "--context", str(measuring.target)]
    words += ["--log", str(measuring.log or measuring.folder / RACE)]
    words += replace(measuring, seed=race_seed(measuring.seed)).common()
    words += ["--factors", str(factors)] if factors is not None else []
    words += ["--prompts", str(measuring.prompts)] if measuring.prompts else []
    words += ["--depths", "3", "--documents", "3"] if measuring.quick else []
    words += ["--name", measuring.name] if measuring.name else []
    if methods:
        words += ["--methods", ",".join(methods)]
    _run("engine.rotary", words, measuring, "race", hear)
    if found.decided is None or not found.decided.method:
        reason = found.decided.reason if found.decided else "The race ended without a decision."
        raise EngineError(
            "context.no_winner",
            "No method could be chosen.",
            cause=reason,
            next_step="Name one with --method; --dry-run shows what each would be.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return Race(rows=tuple(found.rows.values()), decided=found.decided, seconds=found.decided.seconds)


def search(measuring: Measuring, method: str, order: Order) -> tuple[Factors, SearchDone]:
    """Search factors on the source with the order's budget; the best set and what was said of the search. Raises the
    process's EngineError."""
    done: list[SearchDone] = []
    planned = [order.evaluations]

    def hear(raw: bytes) -> None:
        line = decode_line(raw)
        if isinstance(line, SearchDone):
            done.append(line)
        elif isinstance(line, SearchStarted):
            planned.append(line.evaluations)
        elif isinstance(line, SearchStep):
            words = f"best score {line.best:.4f}"
            measuring.report(Progress("search", line.evaluation, max(*planned, line.evaluation), words))
        if measuring.hear is not None:
            measuring.hear(raw)

    measuring.report(Progress("search", 0, 0, "loading the model"))
    log = measuring.log or measuring.folder / SEARCH
    words = ["search", "--model", str(measuring.source), "--context", str(measuring.target), "--log", str(log)]
    words += ["--method", method, *measuring.common()]
    words += ["--minutes", f"{order.search_minutes:g}"] if order.search_minutes else []
    words += ["--evaluations", str(order.evaluations)] if order.evaluations else []
    words += ["--documents", str(order.search_documents)] if order.search_documents else []
    words += ["--weight", f"{order.search_text_weight:g}"] if order.search_text_weight is not None else []
    _run("engine.rotary", words, measuring, "search", hear)
    return read_factors(log), done[-1]


def check_folder(measuring: Measuring, *, weights: bool = True) -> FolderCheck:
    """Load the extended folder as anybody would, compare frequencies, generate across the old window. Without its
    `weights` only the frequencies are compared, which takes next to no memory."""
    path = measuring.folder / CHECK
    if not path.is_file():
        measuring.report(Progress("check", 0, 0, "loading the folder"))
        words = ["check", "--model", str(measuring.folder / MODEL), "--out", str(path), *measuring.loading()]
        _run("engine.rotary", words if weights else [*words, "--unloaded"], measuring, "check", None)
    return msgspec.json.decode(path.read_bytes(), type=FolderCheck)


def evaluate(measuring: Measuring, original: int) -> LengthReport:
    """The length report of the extended folder, short text against the source."""
    path = measuring.folder / REPORT
    words = ["--model", str(measuring.folder / MODEL), "--base", str(measuring.source), "--original", str(original)]
    words += ["--log", str(measuring.folder / EVALUATION), *measuring.common(), *_amount(measuring)]
    words += ["--name", measuring.name] if measuring.name else []
    return measured(words, path, measuring.folder / "evaluation.log", measuring.report)


def measured(words: list[str], path: Path, errors: Path, report: Report) -> LengthReport:
    """The report in `path`, measured with the evaluation's flags `words` where it is not there yet. Raises the
    process's EngineError, or `extension.helper_failed`."""
    if not path.is_file():
        report(Progress("evaluation", 0, 0, "loading the model"))
        arguments = [*words, "--out", str(path)]
        run_module("engine.evaluation", arguments, errors, "evaluation", report, failing=_FAILING)
    return msgspec.json.decode(path.read_bytes(), type=LengthReport)


def _amount(measuring: Measuring) -> list[str]:
    """How much the evaluation measures."""
    prompts = measuring.prompts or (QUICK_PROMPTS if measuring.quick else 0)
    words = ["--prompts", str(prompts)] if prompts else []
    words += ["--lengths", ",".join(map(str, measuring.lengths))] if measuring.lengths else []
    words += [] if measuring.needles else ["--tasks", "none"]
    return [*words, "--depths", "3", "--documents", "4", "--no-sliding"] if measuring.quick else words


def _run(module: str, words: list[str], measuring: Measuring, phase: str, hear: Hear | None) -> None:
    log = measuring.folder / f"{phase}.log"
    run_module(module, words, log, phase, measuring.report, failing=_FAILING, hear=hear)
