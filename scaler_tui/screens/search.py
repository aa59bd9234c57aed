"""The live search of factors (LongRoPE2): the best score over evaluations, and the factors of the best so far by pair.

Owns the two charts and what is said beside them; the searching is followed by `screens.measuring`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widget import Widget

from scaler_tui.race_state import search_words
from scaler_tui.race_table import perplexity_text
from scaler_tui.screens.measuring import MeasuringScreen
from scaler_tui.widgets.chart_raster import ChartData, ChartMode
from scaler_tui.widgets.line_chart import LineChart
from scaler_tui.widgets.status_line import FixedText, toned

if TYPE_CHECKING:
    from engine.jobs.race_lines import SearchDone

TALL = 34
"""Rows from which every method's figures are told."""


class SearchScreen(MeasuringScreen):
    """Score above (or left), factors below (or right)."""

    CSS_PATH: ClassVar[list[str | PurePath]] = [Path(__file__).parent.parent / "styles" / "chart.tcss"]
    place = "search"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Take it", tooltip="Use the factors that were found"),
        Binding("escape", "cancel", "Stop", key_display="Esc", tooltip="Stop searching; it can go on later"),
        Binding("r", "go_on", "Go on", tooltip="Search on from where it stopped"),
        Binding("b,backspace,left,escape", "back", "Back", key_display="b", tooltip="Back; the search goes on"),
    ]

    def body(self) -> Iterable[Widget]:
        """Progress, charts, words."""
        yield FixedText(id="search-progress")
        mode = ChartMode.BRAILLE if self.scaler.policy.unicode else ChartMode.ASCII
        with Container(id="search-charts"):
            with Vertical(id="search-score"):
                yield FixedText(id="score-legend")
                yield LineChart(id="score-chart", mode=mode)
            with Vertical(id="search-factors"):
                yield FixedText(id="factor-legend")
                yield LineChart(id="factor-chart", mode=mode)
        yield FixedText(id="search-words")

    @property
    def complete(self) -> bool:
        """Whether the search came to its end."""
        return self.race.found is not None

    def title_text(self) -> str:
        """What is searched."""
        return f"search factors for {self.key.model}, to {self.key.target:,}"

    def show_race(self) -> None:
        """Draw charts and words."""
        if not self.is_mounted:
            return
        race = self.race
        width = max(self.size.width - 2, 30)
        tone = "bad" if race.error is not None else "good" if race.found is not None else "busy"
        self.query_one("#search-progress", FixedText).show(toned(search_words(race), tone))
        total = race.search.evaluations if race.search is not None else 0
        pairs = len(race.divisors)
        self.query_one("#score-legend", FixedText).show(self._score_legend())
        self.query_one("#factor-legend", FixedText).show(self._factor_legend())
        score = ChartData(race.best_points, race.score_points, total, "evaluation", "The score appears here.")
        self.query_one("#score-chart", LineChart).show(score)
        factors = ChartData(race.factor_points, (), max(pairs - 1, 0), "pair", "The factors appear here.")
        self.query_one("#factor-chart", LineChart).show(factors)
        self.query_one("#search-words", FixedText).show(self._words(width))

    def _score_legend(self) -> Content:
        line = "━━" if self.scaler.policy.unicode else "**"
        steps = self.race.steps
        best = f"{steps[-1].best:.4f}" if steps else "-"
        return Content.assemble(toned(f" {line} ", "busy"), "best score ", toned(best, "strong"))

    def _factor_legend(self) -> Content:
        line = "━━" if self.scaler.policy.unicode else "**"
        divisors = self.race.divisors
        span = f"{min(divisors):.2f} to {max(divisors):.2f}" if divisors else "-"
        return Content.assemble(toned(f" {line} ", "busy"), "divisor by pair ", toned(span, "strong"))

    def _words(self, width: int) -> Content:
        race, texts = self.race, []
        if race.error is not None:
            texts.append(" ".join(text for text in (race.error.cause, race.error.next_step) if text))
        search, found = race.search, race.found
        if search is not None:
            seeds = f"; begins with {', '.join(search.seeds)}" if search.seeds else ""
            texts.append(
                f"{search.documents} documents of {search.length:,} tokens an evaluation; pairs from "
                f"{search.critical_pair} on are searched{seeds}."
            )
        last = found or (race.steps[-1] if race.steps else None)
        if last is not None and last.needle_nll is not None and last.perplexity is not None:
            what = "Found" if found is not None else "Last tried"
            texts.append(
                f"{what}: needles {last.needle_nll:.3f} nats per answer token, perplexity "
                f"{perplexity_text(last.perplexity)}: both are shown, for one can be had at the cost of the other."
            )
        if found is not None:
            seed = f" ({found.best_seed_name})" if found.best_seed_name else ""
            texts.append(f"Best score {found.best:.4f}; the best it began with{seed} had {found.best_seed:.4f}.")
            texts += self._seeds(found)
        wrapped = ["\n".join(textwrap.wrap(text, width - 2, break_on_hyphens=False)) for text in texts if text]
        return Content("\n".join(wrapped))

    def _seeds(self, found: SearchDone) -> list[str]:
        """Every known method on both objectives, where there is room."""
        if self.size.height < TALL:
            return []
        told = [
            f"{one.name} {one.score:.3f} ({one.needle_nll:.3f} nats, perplexity {perplexity_text(one.perplexity)})"
            for one in sorted(found.seeds, key=lambda one: one.score)
        ]
        return [f"It began with {'; '.join(told)}."] if told else []

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done now."""
        if action == "take":
            return True if self.complete else None
        return super().check_action(action, parameters)

    def action_take(self) -> None:
        """Use what was found."""
        if self.race.found is not None:
            window = self.scaler.wizard.window
            window.choice = replace(window.choice, method=self.key.method)
            self.app.pop_screen()
