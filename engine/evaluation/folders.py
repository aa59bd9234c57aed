"""Model folders measured on suites and benchmarks, one after the other in memory, and the second against the first.

Owns the order of loading and what is compared. Must not know runs. Folders of adapters are measured on their base.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.evaluation.benchmarks import run_tasks
from engine.evaluation.comparison import compare
from engine.evaluation.findings import Found, SuiteSums, SuiteText, TaskResult, card_benchmarks, card_suites
from engine.evaluation.head import SelectiveHead
from engine.evaluation.length_log import CellLog
from engine.evaluation.length_text import default_source
from engine.evaluation.loading import loaded
from engine.evaluation.model import LoadedModel
from engine.evaluation.progress import Report, silent
from engine.evaluation.suite_text import digest, read_suite
from engine.evaluation.suites import measure_suite
from engine.evaluation.tasks import Asked, load_tasks
from engine.jobs.retention_report import Abilities, FolderReport


@dataclass(frozen=True, slots=True)
class Source:
    """A text to measure on."""

    name: str
    path: str
    field: str = "text"
    max_tokens: int = 32_768


@dataclass(frozen=True, slots=True)
class Model:
    """A folder, and the base under it where it holds an adapter."""

    folder: Path
    name: str
    base: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        return self.base or self.folder


@dataclass(frozen=True, slots=True)
class FoldersRequest:
    """What is measured on what. Without suites and tasks a text that fits the tokenizer is taken."""

    model: Model
    parent: Model | None = None
    suites: tuple[Source, ...] = ()
    tasks: tuple[str, ...] = ()
    limit: int = 0
    """Questions per benchmark; 0 is all."""
    dtype: str = "auto"
    quantization: str = "none"


class _Tasks(msgspec.Struct, frozen=True):
    results: tuple[TaskResult, ...]


def measure_folders(request: FoldersRequest, log: Path | None = None, report: Report = silent) -> FolderReport:
    """The report. With `log` a killed measurement goes on where it was. Raises EngineError.

    The texts are cut with the parent's tokenizer where there is a parent: both read the same ones, whatever their own.
    """
    began, asked = time.monotonic(), load_tasks(request.tasks)
    cells = CellLog(log, "folders")
    try:
        first = request.parent or request.model
        texts: tuple[SuiteText, ...] | None = None
        found: dict[Path, Found] = {}
        for model in dict.fromkeys((first, request.model)):
            report(f"loading {model.name}", 0, 0, None)
            with _opened(model, request) as ready:
                texts = texts if texts is not None else texts_of(request, ready)
                found[model.folder] = Measuring(request, model, ready, cells, report).run(texts, asked)
    finally:
        cells.close()
    after = found[request.model.folder]
    before = found[request.parent.folder] if request.parent is not None else None
    return FolderReport(
        model=abilities_of(request.model, after),
        parent=abilities_of(request.parent, before) if request.parent is not None and before is not None else None,
        retention=compare(before, after) if before is not None else (),
        questions_limit=request.limit,
        seconds=time.monotonic() - began,
        created=time.time(),
        versions=versions_of(bool(asked)),
    )


def abilities_of(model: Model, found: Found) -> Abilities:
    """What was found, as reports have it."""
    return Abilities(
        model=model.name, folder=str(model.folder), suites=card_suites(found), benchmarks=card_benchmarks(found)
    )


def versions_of(benchmarks: bool) -> dict[str, str]:
    """Of the libraries that a figure depends on."""
    names = ("torch", "transformers", *(("lm_eval",) if benchmarks else ()))
    return {name: importlib.metadata.version(name) for name in names}


def texts_of(request: FoldersRequest, model: LoadedModel) -> tuple[SuiteText, ...]:
    """The texts to measure on, cut with this model's tokenizer."""
    sources = request.suites
    if not sources and not request.tasks:
        name = default_source(model.tokenizer)
        sources = (Source(name, name),)
    window = model.context_length
    return tuple(read_suite(s.name, s.path, s.field, model.tokenizer, window, s.max_tokens) for s in sources)


@contextlib.contextmanager
def _opened(model: Model, request: FoldersRequest) -> Iterator[LoadedModel]:
    if model.base is None:
        with loaded(model.folder, request.dtype, request.quantization) as ready:
            yield ready
        return
    with loaded(model.base, request.dtype, request.quantization) as ready:
        base = ready.model
        adapted = _with_adapter(base, model.folder)
        # peft may have put the output head into a module of its own: the hook belongs on the outermost one.
        yield replace(ready, model=adapted, head=SelectiveHead(base))


def _with_adapter(base: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, str(folder)).eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineError(
            "evaluation.adapter",
            f"The adapter in {folder} does not fit its base.",
            cause=" ".join(str(error).split())[:300],
            next_step="Name the right base with --base.",
        ) from error


@dataclass(frozen=True, slots=True)
class Measuring:
    """One model under way; it is ready to be asked, and stays so."""

    request: FoldersRequest
    model: Model
    ready: LoadedModel
    cells: CellLog
    report: Report

    def run(self, texts: tuple[SuiteText, ...], asked: tuple[Asked, ...]) -> Found:
        """Every text and benchmark."""
        suites = tuple(self._suite(text) for text in texts)
        tasks = tuple(result for one in asked for result in self._task(one))
        return Found(suites, tasks)

    def _suite(self, text: SuiteText) -> SuiteSums:
        cell = f"{self._identity()}/suite/{text.name}/{digest(text)}"
        found = self.cells.find(cell, SuiteSums)
        if found is None:
            began, words = time.monotonic(), f"{self.model.name} on {text.name}"
            found = measure_suite(self.ready, text, lambda done, total: self.report(words, done, total, None))
            self.cells.add(cell, found, time.monotonic() - began)
        return found

    def _task(self, asked: Asked) -> tuple[TaskResult, ...]:
        cell = f"{self._identity()}/task/{asked.name}/{self.request.limit or 'all'}"
        found = self.cells.find(cell, _Tasks)
        if found is None:
            began = time.monotonic()
            self.report(f"{self.model.name} on {asked.name}", 0, 0, None)
            found = _Tasks(run_tasks(self.ready, self.model.tokenizer_folder, asked, self.request.limit or None))
            self.cells.add(cell, found, time.monotonic() - began)
        return found.results

    def _identity(self) -> str:
        """Paths, sizes and times of the weights, and how they are loaded."""
        told = [self.request.dtype, self.request.quantization]
        for folder in filter(None, (self.model.folder, self.model.base)):
            told.append(str(folder.resolve()))
            told += [
                f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in sorted(folder.glob("*.safetensors"))
            ]
        return hashlib.sha256("|".join(told).encode()).hexdigest()[:16]
