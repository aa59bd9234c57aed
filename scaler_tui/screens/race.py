"""The live race of scaling methods: a row per method as it is measured, the pointed one's needles as a heat map below.

Owns the pointer and the drawing; the measuring is followed by `screens.measuring`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget

from engine.jobs.heat_grid import heat_grid
from scaler_tui.race_state import progress_words
from scaler_tui.race_table import Look, race_lines
from scaler_tui.screens.measuring import MeasuringScreen
from scaler_tui.widgets.heat_map import HeatMap, lines_content
from scaler_tui.widgets.status_line import FixedText, toned
from scaler_tui.window_facts import SEARCHED

if TYPE_CHECKING:
    from scaler_tui.window import RaceKey
    from scaler_tui.window_facts import MethodFacts, WindowFacts

SHORT, TALL = 23, 34
"""Rows of a terminal; as the style sheets have them."""
MOST_SHORT = 6
"""Methods shown at once on a short one, so that the map has room."""
WAY_TO_SEARCH = "s searches its factors on this model"


class RaceScreen(MeasuringScreen):
    """Table above, heat map and words of the pointed method below."""

    place = "race"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Take it", tooltip="Choose the pointed method"),
        Binding("escape", "cancel", "Stop", key_display="Esc", tooltip="Stop measuring; what was measured is kept"),
        Binding("r", "go_on", "Go on", tooltip="Measure what is missing"),
        Binding("s", "search", "Search", tooltip="Search factors for this model (LongRoPE2)"),
        Binding("w", "winner", "Winner", tooltip="Pointer to the winner"),
        Binding("b,backspace,left,escape", "back", "Back", key_display="b", tooltip="Back; measuring goes on"),
        Binding("up,k", "move(-1)", "Method", show=False),
        Binding("down,j", "move(1)", "Method", show=False),
        Binding("pageup", "page(-1)", "Page", show=False),
        Binding("pagedown,space", "page(1)", "Page", show=False),
    ]

    def __init__(self, key: RaceKey, facts: WindowFacts) -> None:
        super().__init__(key)
        self.facts = facts
        self.pointer = 0
        self._moved = False
        """Whether the user has moved the pointer; before, it follows the measuring."""

    def body(self) -> Iterable[Widget]:
        """Progress, table, map, words."""
        yield FixedText(id="race-progress")
        yield FixedText(id="race-table")
        with VerticalScroll(id="race-scroll", can_focus=False):
            yield HeatMap(id="race-map")
            yield FixedText(id="race-words")

    @property
    def complete(self) -> bool:
        """Whether there is a winner, or none can be."""
        return self.race.decided is not None

    @property
    def method(self) -> str:
        """The pointed method; "" before there are any."""
        contenders = self.race.contenders
        return contenders[self.pointer].method if self.pointer < len(contenders) else ""

    def title_text(self) -> str:
        """What is measured."""
        original, target = self.facts.original, self.facts.target
        return f"race on {self.key.model}, {original:,} {self.signs.arrow} {target:,}"

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def show_race(self) -> None:
        """Draw everything for the present size."""
        if not self.is_mounted:
            return
        race = self.race
        if not self._moved:
            self._follow()
        width = max(self.size.width - 2, 30)
        self.query_one("#race-progress", FixedText).show(self._progress(width))
        short = self.size.height < SHORT
        most = MOST_SHORT if short else 99
        ways = {SEARCHED: WAY_TO_SEARCH}
        lines = race_lines(race, width, self.pointer, Look(self.signs.star, self.signs.pointer, most, ways))
        table = self.query_one("#race-table", FixedText)
        table.display = bool(lines)
        table.show(lines_content(lines))
        report = race.report(self.method)
        above = self.query_one("#race-progress", FixedText).plain.count("\n") + 1
        room = max(self.size.height - 3 - above - len(lines), 5)
        heat = self.query_one(HeatMap)
        grid = heat_grid(report.needles) if report is not None else None
        heat.display = grid is not None
        unicode = self.scaler.policy.unicode
        heat.show_grid(grid, unicode=unicode, rows=room, with_legend=room >= 8)
        self.query_one("#race-words", FixedText).show(self._words(width))

    def _follow(self) -> None:
        """Point at what is measured now; at the winner once there is one."""
        race = self.race
        wanted = race.decided.method if race.decided is not None else race.now.method if race.now is not None else ""
        for index, contender in enumerate(race.contenders):
            if contender.method == wanted and (race.report(wanted) is not None or race.decided is not None):
                self.pointer = index

    def _progress(self, width: int) -> Content:
        race = self.race
        if race.decided is not None and not race.running:
            winner = race.decided.method or "no winner"
            lines = textwrap.wrap(f"{self.signs.star} {winner}: {race.decided.reason}", width, break_on_hyphens=False)
            most = 1 if self.size.height < SHORT else 2 if self.size.height < TALL else 4
            if len(lines) > most:
                lines[most - 1] = textwrap.shorten(lines[most - 1] + " " + lines[most], width, placeholder=" ...")
            return toned("\n".join(lines[:most]), "good")
        words = textwrap.shorten(progress_words(race), width, placeholder=" ...")
        return toned(words, "bad" if race.error is not None else "busy")

    def _words(self, width: int) -> Content:
        race, parts = self.race, []
        if race.error is not None:
            told = " ".join(text for text in (race.error.cause, race.error.next_step) if text)
            parts.append(toned(self._wrapped(told, width), "bad"))
        decided = race.decided
        facts = self.facts.of(self.method)
        if facts is not None:
            why = f" It cannot be chosen: {self._obstacle(facts)}" if facts.why_not else ""
            parts.append(Content(self._wrapped(f"{self.method}: {facts.method.summary}.{why}", width)))
        if decided is not None:
            if self.query_one("#race-progress", FixedText).plain.endswith("..."):
                parts.append(Content(self._wrapped(f"Decided: {decided.reason}", width)))
            parts.append(toned(f"{progress_words(race)}.", "quiet"))
        rule = (decided.rule if decided is not None else "") or (race.started.rule if race.started is not None else "")
        if rule:
            parts.append(toned(self._wrapped(f"Rule: {rule}", width), "quiet"))
        return Content("\n").join(parts)

    def _wrapped(self, text: str, width: int) -> str:
        return "\n".join(textwrap.wrap(text, max(width - 2, 20), break_on_hyphens=False))

    def _obstacle(self, facts: MethodFacts) -> str:
        return f"{facts.why_not}: {WAY_TO_SEARCH}" if facts.needs_search else facts.why_not

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done now."""
        decided = self.race.decided
        if action == "search":
            return self.facts.of(SEARCHED) is not None
        if action == "winner":
            return decided is not None and bool(decided.method)
        if action == "take":
            return True if self._takeable() else None
        return super().check_action(action, parameters)

    def _takeable(self) -> bool:
        facts = self.facts.of(self.method)
        return facts is not None and facts.usable

    def action_move(self, by: int) -> None:
        """Another method."""
        self._moved = True
        self.pointer = min(max(self.pointer + by, 0), max(len(self.race.contenders) - 1, 0))
        self.show_race()
        self.refresh_bindings()
        self.query_one("#race-scroll", VerticalScroll).scroll_home(animate=False)

    def action_page(self, pages: int) -> None:
        """Scroll what is below the table."""
        scroll = self.query_one("#race-scroll", VerticalScroll)
        scroll.scroll_relative(y=pages * max(scroll.size.height - 1, 1), animate=False)

    def action_winner(self) -> None:
        """Point at it."""
        self._moved = False
        self.show_race()
        self.refresh_bindings()

    def action_search(self) -> None:
        """The search of factors."""
        from scaler_tui.screens.search import SearchScreen

        self.app.push_screen(SearchScreen(replace(self.key, method=SEARCHED)))

    def action_take(self) -> None:
        """Choose the pointed method and go back."""
        if not self._takeable():
            facts = self.facts.of(self.method)
            why = self._obstacle(facts) if facts is not None else "This is the model as it is, for comparison."
            self.notify(why, title=f"{self.method} cannot be chosen", severity="warning", markup=False)
            return
        window = self.scaler.wizard.window
        window.choice = replace(window.choice, method=self.method)
        self.app.pop_screen()
