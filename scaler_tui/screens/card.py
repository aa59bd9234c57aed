"""The before/after card: what a run changed, in figures and plain words, and where its files are.

Owns the layout; wording is in `card_words`. Must not read or merge in the interface thread: a worker reads, the engine
thread merges in a process of its own.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import ClassVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen

from engine.errors import EngineError
from engine.jobs.card import Card
from engine.jobs.layout import CARD_PAGE
from scaler_tui.feeds.engine_thread import EngineDone, EngineFailed, engine_thread_of
from scaler_tui.proof_text import told_growth
from scaler_tui.screens.help import HelpScreen
from scaler_tui.screens.problem import ProblemScreen
from scaler_tui.screens.run import STYLES
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets import card_abilities, card_results, card_words
from scaler_tui.widgets.before_after import BeforeAfter, Pair
from scaler_tui.widgets.frame import KeyLine
from scaler_tui.widgets.status_line import FixedText, toned


class CardRead(Message):
    """The card was read, or there is none."""

    def __init__(self, card: Card | None, error: EngineError | None = None) -> None:
        super().__init__()
        self.card = card
        self.error = error


class CardScreen(Screen[None]):
    """The card of the run in `run_dir`."""

    CSS_PATH: ClassVar[list[str | PurePath]] = [STYLES / "run.tcss", STYLES / "card.tcss"]
    AUTO_FOCUS = "#card"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("h", "page", "HTML page", id="card.page", tooltip="Where the page with plots is"),
        Binding("m", "merge", "Merge", id="card.merge", tooltip="Write a merged model that plain transformers loads"),
        Binding("t", "chat", "Try it", id="card.chat", tooltip="Talk to it, beside its base where that is free"),
        Binding("x", "export", "Export", id="card.export", tooltip="Write it for transformers, llama.cpp or Ollama"),
        Binding("a", "mix", "Mix", id="card.mix", tooltip="Mix its adapter with others"),
        Binding("v", "proof", "Proof", id="card.proof", tooltip="What was proven of the grown model"),
        Binding("b,escape,backspace", "back", "Back", key_display="b", id="card.back"),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="card.help"),
        Binding("q", "leave", "Leave", show=False, tooltip="Leave the program"),
    ]
    place: ClassVar[str] = "card"

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.card: Card | None = None
        self.merging = False

    def compose(self) -> ComposeResult:
        yield FixedText(id="card-title")
        with VerticalScroll(id="card"):
            yield FixedText(id="card-headline")
            yield FixedText(id="card-scores", classes="card-part")
            yield FixedText(id="card-mix", classes="card-part")
            yield FixedText(id="card-teacher", classes="card-part")
            yield FixedText(id="card-exports", classes="card-part")
            yield FixedText(id="card-retention", classes="card-part")
            yield FixedText(id="card-texts", classes="card-part")
            yield FixedText(id="card-benchmarks", classes="card-part")
            yield FixedText(id="card-stages", classes="card-part")
            yield FixedText(id="card-trouble", classes="card-part")
            yield FixedText(id="card-lengths", classes="card-part")
            yield FixedText(id="card-promises", classes="card-part")
            yield BeforeAfter(id="card-samples", empty="No fixed prompts were answered.")
            yield FixedText(id="card-files", classes="card-part")
            yield FixedText(id="card-facts", classes="card-part")
        yield FixedText(id="card-status")
        yield KeyLine(id="keys")

    @property
    def unicode(self) -> bool:
        """False: ASCII only."""
        policy = getattr(self.app, "policy", None)
        return policy.unicode if isinstance(policy, RenderPolicy) else True

    def on_mount(self) -> None:
        self.set_class(not self.unicode, "-ascii")
        arrow = "→" if self.unicode else "->"
        titles = {
            "retention": "Against the parent model", "texts": "Texts", "benchmarks": "Benchmarks", "stages": "Stages",
            "trouble": "Trouble it went through", "mix": "Mixed from adapters", "teacher": "Teacher",
            "exports": "Written for other programs",
            "scores": f"Before {arrow} after", "lengths": "By length", "promises": f"Predicted {arrow} measured",
            "samples": "Same prompts", "files": "Files", "facts": "Run",
        }  # fmt: skip
        for name, title in titles.items():
            part = self.query_one(f"#card-{name}")
            part.border_title = title
            part.display = False
        self.query_one("#card-samples").can_focus = False
        self.query_one("#card-status").display = False
        self.query_one("#card-title", FixedText).show(
            Content.assemble(" ", toned("Card", "strong"), f"  {self.run_dir.name}")
        )
        self.read_card()

    @work(thread=True, exclusive=True, exit_on_error=False, group="card")
    def read_card(self) -> None:
        """Read card.json in a thread."""
        from engine.jobs.card_io import read_card

        try:
            self.post_message(CardRead(read_card(self.run_dir)))
        except EngineError as error:
            self.post_message(CardRead(None, error))

    async def on_card_read(self, message: CardRead) -> None:
        """Show it."""
        message.stop()
        self.card = message.card
        if message.error is not None:
            text = f"{message.error.what} {message.error.cause}".strip()
            next_step = message.error.next_step or "A card is written when a run ends."
            self.query_one("#card-headline", FixedText).show(Content.assemble(toned(text, "strong"), "\n", next_step))
        await self.show_card()
        self.refresh_bindings()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.show_card)

    async def show_card(self) -> None:
        """Draw the card for the present width."""
        card = self.card
        if card is None or not self.is_mounted:
            return
        unicode = self.unicode
        width = max(self.query_one("#card").scrollable_content_region.width - 2, 30)
        name = f"{card.name}  {card.run_id}" if card.name else card.run_id
        self.query_one("#card-title", FixedText).show(Content.assemble(" ", toned("Card", "strong"), f"  {name}"))
        self._fill("headline", card_words.headline(card, unicode=unicode))
        self._fill("scores", card_words.score_lines(card, width, unicode=unicode))
        self._fill("mix", card_results.mix_lines(card, width))
        self._fill("teacher", card_results.teacher_lines(card, width))
        self._fill("exports", card_results.export_lines(card.exports, width, unicode=unicode))
        self._fill("retention", card_abilities.retention_lines(card, width, unicode=unicode))
        self._fill("texts", card_abilities.text_lines(card, width, unicode=unicode))
        self._fill("benchmarks", card_abilities.benchmark_lines(card, width, unicode=unicode))
        self._fill("stages", card_abilities.stage_lines(card, width, unicode=unicode))
        self._fill("trouble", card_abilities.trouble_lines(card, width))
        self._fill("lengths", card_words.length_lines(card, width, unicode=unicode))
        self._fill("promises", card_words.promise_table(card, width, unicode=unicode))
        self._fill("files", card_words.file_lines(card, self.run_dir, merging=self.merging))
        self._fill("facts", card_words.fact_lines(card))
        samples = self.query_one("#card-samples", BeforeAfter)
        samples.display = True
        await samples.show([Pair(s.prompt, s.before, s.after, s.expected) for s in card.samples], unicode=unicode)

    def _fill(self, name: str, content: Content) -> None:
        part = self.query_one(f"#card-{name}", FixedText)
        part.display = bool(content.plain)
        part.show(content)

    def _say(self, content: Content) -> None:
        status = self.query_one("#card-status", FixedText)
        status.display = True
        status.show(content)

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Merging makes sense once, and only for an adapter."""
        if action == "merge" and self.card is not None and self.card.adapter.kind != "adapter":
            return False
        if action == "merge":
            return True if self.card is not None and self.card.merged is None and not self.merging else None
        if action == "mix":
            return self.card is not None and self.card.adapter.kind == "adapter"
        if action == "export":
            return True if self.card is not None else None
        if action == "proof":
            return self.card is not None and any(growth.proof is not None for growth in self.card.growths)
        if action in ("page", "chat"):
            return True if self.card is not None else None
        return True

    def action_page(self) -> None:
        """Say where the page is."""
        page = self.run_dir / CARD_PAGE
        if page.exists():
            self._say(Content.assemble(toned("Open in a browser: ", "strong"), str(page)))
        else:
            self._say(Content.assemble(toned("The page is not there: ", "strong"), str(page)))

    def action_proof(self) -> None:
        """The proof of the newest growth."""
        from scaler_tui.screens.proof import ProofScreen

        if self.card is not None and self.card.growths:
            told = told_growth(self.card.growths[-1])
            self.app.push_screen(ProofScreen(self.run_dir / self.card.adapter.path, told))

    def action_chat(self) -> None:
        """Talk to what the run has left."""
        from scaler_tui.chat_sides import of_run_with_base
        from scaler_tui.screens.chat import ChatScreen

        self.app.push_screen(ChatScreen(of_run_with_base(self.run_dir)))

    def action_export(self) -> None:
        """In the form of another program."""
        from scaler_tui.screens.export import ExportScreen

        if self.card is not None:
            adapter = self.card.adapter.kind == "adapter"
            name = self.card.name or self.card.run_id
            self.app.push_screen(ExportScreen(self.run_dir, name, self.card.exports, adapter=adapter))

    def action_mix(self) -> None:
        """With other adapters of its base."""
        from scaler_tui.screens.adapters import AdaptersScreen

        if self.card is not None:
            self.app.push_screen(AdaptersScreen(self.run_dir / self.card.adapter.path))

    def on_screen_resume(self) -> None:
        """Exports may have been added meanwhile."""
        if self.card is not None:
            self.read_card()

    async def action_merge(self) -> None:
        """Write the merged model in its own process."""
        if self.card is None or self.card.merged is not None or self.merging:
            return
        self.merging = True
        self._say(Content("Merging in a process of its own. It goes on when you leave this screen."))
        self.refresh_bindings()
        engine_thread_of(self.app).merge(self.run_dir, self)
        await self.show_card()

    def on_engine_done(self, message: EngineDone) -> None:
        """The merge is complete: read the card again, it has the check in it."""
        message.stop()
        self.merging = False
        self._say(Content("Merged. The difference between adapter and merged model is shown under Files."))
        self.read_card()

    async def on_engine_failed(self, message: EngineFailed) -> None:
        """The merge failed; the adapter is not affected."""
        message.stop()
        self.merging = False
        self._say(toned(message.error.what, "bad"))
        self.refresh_bindings()
        await self.show_card()
        self.app.push_screen(ProblemScreen(message.error))

    def action_back(self) -> None:
        """One screen back."""
        self.dismiss()

    def action_help(self) -> None:
        """The keys of this screen."""
        self.app.push_screen(HelpScreen.of(self))

    async def action_leave(self) -> None:
        """Leave the program."""
        await self.app.run_action("leave" if hasattr(self.app, "action_leave") else "quit")
