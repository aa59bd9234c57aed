"""What a model folder can do, and what of its parent's abilities is left, as data: `eval --against`.

Owns the report's shape and its page. Must not know torch, nor how anything is measured (`engine.evaluation.folders`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape

import msgspec

from engine.jobs.card import BenchmarkResult, SuiteResult
from engine.jobs.card_evaluation import benchmarks_table, retention_table, suites_table
from engine.jobs.card_html import document
from engine.jobs.events import RetentionReport
from engine.units import format_duration


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """One model, measured."""

    model: str
    folder: str
    suites: tuple[SuiteResult, ...] = ()
    benchmarks: tuple[BenchmarkResult, ...] = ()


class FolderReport(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and against which parent."""

    model: Abilities
    parent: Abilities | None = None
    retention: tuple[RetentionReport, ...] = ()
    """Empty without a parent."""
    questions_limit: int = 0
    """Questions per benchmark; 0 is all."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    created: float = 0.0
    versions: dict[str, str] = {}
    v: int = 1

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.parent is None:
            return f"{self.model.model} was measured; there is no parent to compare it with."
        lost = [report.words for report in self.retention if report.verdict == "lost"]
        if lost:
            return f"Lost against {self.parent.model}: {'; '.join(lost)}."
        unclear = sum(report.verdict == "unclear" for report in self.retention)
        sure = f"; {unclear} of {len(self.retention)} could not be told" if unclear else ""
        return f"Nothing was lost against {self.parent.model}{sure}."


class AdapterAbilities(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter on the base, and what changed against the base alone."""

    abilities: Abilities
    retention: tuple[RetentionReport, ...] = ()


class AdaptersReport(msgspec.Struct, frozen=True, kw_only=True):
    """Adapters measured one after the other on one base in memory: `eval BASE --adapter A --adapter B`."""

    base: Abilities
    adapters: tuple[AdapterAbilities, ...]
    questions_limit: int = 0
    """Questions per benchmark; 0 is all."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    created: float = 0.0
    versions: dict[str, str] = {}
    v: int = 1

    @property
    def verdict(self) -> str:
        """One sentence."""
        lost = [one.abilities.model for one in self.adapters if any(r.verdict == "lost" for r in one.retention)]
        if lost:
            return f"Something of {self.base.model} was lost with {', '.join(lost)}."
        return f"No adapter lost anything of {self.base.model} that could be told."


def retention_page(report: FolderReport) -> str:
    """A self-contained page."""
    title = escape(report.model.model)
    against = f" against {escape(report.parent.model)}" if report.parent is not None else ""
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report.created))
    subtitle = f"abilities{against} · {format_duration(report.seconds)} · {day}"
    return document(title, f"{title} · abilities", subtitle, list(_sections(report)))


def _sections(report: FolderReport) -> Iterator[str]:
    parent = report.parent or Abilities(model="", folder="")
    yield f'<section><div class="panel"><b>{escape(report.verdict)}</b></div></section>'
    if report.retention:
        yield _section("Against the parent model", retention_table(report.retention))
    yield _section("Texts", suites_table(parent.suites, report.model.suites))
    yield _section("Benchmarks", benchmarks_table(parent.benchmarks, report.model.benchmarks))
    if report.notes:
        yield _section("Notes", "".join(f"<p>{escape(note)}</p>" for note in report.notes))


def _section(title: str, table: str) -> str:
    return f'<section><h2>{title}</h2><div class="panel">{table}</div></section>' if table else ""
