"""A chat: one question, every side's answer in a column of its own, as it is written.

Owns layout, keys, and what is asked when. Must not load models or write files: `feeds.chat_feed` does, in threads.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import ClassVar

import msgspec
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen

from engine.jobs.chat_lines import SEEDS, Ask, Stop
from scaler_tui.chat_sides import ChatAsked
from scaler_tui.chat_state import ChatSettings, ChatState, Phase, SideState, as_typed, changed
from scaler_tui.chat_words import names, status, title
from scaler_tui.feeds.chat_feed import ChatFeed, ChatFound, ChatNews, ChatOver, ChatSaved
from scaler_tui.screens.help import HelpScreen
from scaler_tui.screens.problem import ProblemScreen
from scaler_tui.screens.run import STYLES
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.chat_column import ChatColumn, GrowingText
from scaler_tui.widgets.frame import KeyLine
from scaler_tui.widgets.prompt_field import PromptField
from scaler_tui.widgets.status_line import FixedText, toned

COLUMN_CELLS = 38
"""A column is at least so wide; sides without room are reached with Tab."""
MOST_COLUMNS = 3
_INTO_FIELD = {"enter": "write", "i": "write", "s": "set('seed')", "t": "set('temperature')"}
_SAME = "At temperature 0 the answer would be the same: t sets another temperature."


class ChatScreen(Screen[None]):
    """Talk to what `asked` names."""

    CSS_PATH: ClassVar[list[str | PurePath]] = [STYLES / "run.tcss", STYLES / "chat.tcss"]
    AUTO_FOCUS = "#chat-field"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-normal"), (110, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,i", "write", "Write", key_display="Enter", tooltip="Back into the field"),
        Binding("r,ctrl+r", "again", "Again", tooltip="Answer the same question again, with the next seed"),
        Binding("c,ctrl+l", "clear", "Clear", tooltip="Forget the conversation; what was saved stays"),
        Binding("v,ctrl+o", "sent", "Text sent", tooltip="The very text that was sent, special tokens and all"),
        Binding("b", "back", "Back", key_display="b", tooltip="Back; the models leave memory"),
        Binding("escape,backspace", "away", show=False),
        Binding("s", "set('seed')", "Seed", tooltip="Another seed; every side and answer begins with it"),
        Binding("t", "set('temperature')", "Temp", tooltip="Another temperature; 0 is the likeliest token"),
        Binding("tab", "next", "Next side", tooltip="The next side, where not all fit"),
        Binding("pageup,up", "page(-1)", "Scroll", show=False),
        Binding("pagedown,down", "page(1)", "Scroll", show=False),
        Binding("question_mark,f1", "help", "Help", key_display="?"),
        Binding("q", "leave", "Leave", tooltip="Leave the program; runs go on"),
    ]
    place: ClassVar[str] = "chat"

    def __init__(self, asked: ChatAsked, settings: ChatSettings | None = None) -> None:
        super().__init__()
        self.asked = asked
        self.settings = settings or ChatSettings()
        self.state: ChatState | None = None
        """None until it is known who takes part."""
        self.run_dir: Path | None = None
        """The run that the chat belongs to."""
        self.feed: ChatFeed | None = None
        self.first = 0
        """The side in the leftmost column."""
        self.shows_sent = False
        self._setting = ""
        """ "seed" or "temperature" while the field takes one."""
        self._leaving = False
        """The newest key was an Escape that did not leave yet."""
        self._waiting = ""
        """Asked while the models were loading."""
        self._answered = ""
        """Settings and question of the newest answers."""
        self._said = self._saved = ""

    def compose(self) -> ComposeResult:
        yield FixedText(id="chat-title")
        yield FixedText(id="chat-tabs")
        yield Horizontal(id="chat-columns")
        yield GrowingText(id="chat-status")
        with Horizontal(id="chat-ask"):
            yield GrowingText(id="chat-sign")
            yield PromptField(id="chat-field")
        yield KeyLine(id="keys")

    @property
    def policy(self) -> RenderPolicy:
        """Of the app."""
        policy = getattr(self.app, "policy", None)
        return policy if isinstance(policy, RenderPolicy) else RenderPolicy()

    @property
    def field(self) -> PromptField:
        """Where one types."""
        return self.query_one("#chat-field", PromptField)

    @property
    def columns(self) -> int:
        """How many sides are shown beside each other."""
        sides = len(self.state.sides) if self.state is not None else 1
        return max(1, min(sides, MOST_COLUMNS, self.size.width // COLUMN_CELLS))

    @property
    def answering(self) -> bool:
        """Whether an answer is under way."""
        return self.state is not None and self.state.phase is Phase.ANSWERING

    def on_mount(self) -> None:
        self.set_class(not self.policy.unicode, "-ascii")
        self.feed = ChatFeed(self.asked, self.settings, self, hz=self.policy.stream_hz)
        self.feed.start()
        self.call_after_refresh(self.show_chat)

    def on_unmount(self) -> None:
        """Nobody reads the answers: the process ends, what there is of them is saved."""
        if self.answering and self.state is not None:
            self.state.over(None)
            self._save()
        if self.feed is not None:
            self.feed.close()

    # ── news ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def on_chat_found(self, message: ChatFound) -> None:
        """It is known who takes part."""
        message.stop()
        sides = [SideState(order) for order in message.found.sides]
        self.state = ChatState(sides, sampling=self.settings.sampling, system=self.settings.system)
        self.run_dir = message.found.run_dir
        self.field.remember(message.prompts)
        await self.show_chat()

    async def on_chat_news(self, message: ChatNews) -> None:
        """Fold and draw."""
        message.stop()
        state = self.state
        if state is None:
            return
        for line in message.lines:
            if state.take(line):
                self._said = ""  # what was said of the answer under way
                self._save()
        if state.phase is Phase.READY and self._waiting:
            prompt, self._waiting = self._waiting, ""
            self._ask(state.ask(prompt))
        await self.show_chat()
        self.refresh_bindings()

    async def on_chat_over(self, message: ChatOver) -> None:
        """The process is gone."""
        message.stop()
        error = message.error
        if self.state is not None:
            if self.answering:
                self.state.over(error)
                self._save()
            self.state.over(error)
        if self._waiting:
            self.field.give_back(self._waiting)
            self._waiting = ""
        await self.show_chat()
        self.refresh_bindings()
        if error is not None:
            self.app.push_screen(ProblemScreen(error))

    async def on_chat_saved(self, message: ChatSaved) -> None:
        """Where, or why not."""
        message.stop()
        self._saved = f"Saved in {message.path}" if message.path is not None else ""
        self._said = message.problem or self._said
        await self.show_chat()

    def _save(self) -> None:
        if self.feed is not None and self.state is not None and self.state.prompt:
            self.feed.save(self.state.exchange(self.run_dir))

    # ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def show_chat(self) -> None:
        """Draw everything for the present size."""
        if not self.is_mounted:
            return
        state, unicode = self.state, self.policy.unicode
        self.query_one("#chat-title", FixedText).show(self._title(unicode=unicode))
        self.query_one("#chat-status", GrowingText).show(status(state, self._saved, self._said))
        sign = f"{self._setting}:" if self._setting else "›" if unicode else ">"
        self.query_one("#chat-sign", GrowingText).show(toned(sign, "busy"))
        tabs = self.query_one("#chat-tabs", FixedText)
        tabs.display = state is not None and len(state.sides) > self.columns
        if state is None:
            return
        tabs.show(names(state, self._shown()))
        await self._show_columns(state, unicode=unicode)

    async def _show_columns(self, state: ChatState, *, unicode: bool) -> None:
        place, wanted = self.query_one("#chat-columns"), self.columns
        columns = list(self.query(ChatColumn))
        for column in columns[wanted:]:
            await column.remove()
        for _ in range(wanted - len(columns)):
            await place.mount(ChatColumn())
        for place_number, (number, column) in enumerate(zip(self._shown(), self.query(ChatColumn), strict=True)):
            column.set_class(place_number > 0, "-next")
            await column.show(state.sides[number], self.size.width // wanted, sent=self.shows_sent, unicode=unicode)

    def _shown(self) -> list[int]:
        """The sides in the columns, from left to right."""
        count = len(self.state.sides) if self.state is not None else 0
        return [(self.first + offset) % count for offset in range(self.columns)] if count else []

    def _title(self, *, unicode: bool) -> Content:
        sampling = self.state.sampling if self.state is not None else self.settings.sampling
        name = self.run_dir.name if self.run_dir is not None else self.asked.model
        return title(name, sampling, self.size.width, unicode=unicode)

    def on_resize(self, event: events.Resize) -> None:
        """Another size, other columns."""
        self.call_after_refresh(self.show_chat)

    async def _say(self, text: str) -> None:
        self._said = text
        await self.show_chat()

    # ── the field ────────────────────────────────────────────────────────────────────────────────────────────────
    async def on_prompt_field_submitted(self, message: PromptField.Submitted) -> None:
        """A question, or a setting."""
        message.stop()
        text, state = message.text, self.state
        if self._setting:
            await self._set(text)
            return
        if not text.strip():
            return
        if state is None or state.phase is Phase.LOADING:
            if self._waiting:
                await self._say("A question waits for the models already: Enter again once it was asked.")
                return
            self._waiting = text.strip()
            self.field.put("")
            await self._say("It is asked as soon as the models are loaded.")
        elif state.phase is Phase.OVER:
            await self.show_chat()
        elif state.phase is Phase.ANSWERING:
            await self._say("An answer is under way: Esc stops it, then Enter asks this.")
        else:
            self.field.put("")
            self._ask(state.ask(text.strip()))
            await self.show_chat()
        self.refresh_bindings()

    def _ask(self, request: Ask) -> None:
        assert self.state is not None
        self._said, self.shows_sent = "", False
        self._answered = self._settings_now()
        self.field.asked(self.state.prompt)
        if self.feed is not None:
            self.feed.send(request)

    def _settings_now(self) -> str:
        state = self.state
        return f"{state.sampling.words} {state.system} {state.prompt}" if state is not None else ""

    async def _set(self, text: str) -> None:
        if self.state is None or self.answering:
            await self._say("An answer is under way: Esc stops it, then Enter sets this.")
            return
        found = changed(self.state.sampling, self._setting, text)
        if isinstance(found, str):
            await self._say(found)
            return
        self.state.sampling = found
        self._setting = ""
        self.field.take_question()
        await self._say(f"From the next answer on: {found.words}.")

    async def on_prompt_field_escaped(self, message: PromptField.Escaped) -> None:
        """Stop an answer; else out of a setting; else the keys work."""
        message.stop()
        if self.stop_first():
            return
        if self._setting:
            self._setting = ""
            self.field.take_question()
        else:
            self.set_focus(None)
        await self.show_chat()
        self.query_one(KeyLine).refresh()

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The key line offers only what can be done now."""
        state = self.state
        if action == "again":
            ready = state is not None and state.phase is Phase.READY and state.prompt and not self._setting
            return True if ready else None
        if action in ("clear", "set"):
            return True if state is not None and state.phase is not Phase.ANSWERING else None
        if action == "next":
            return state is not None and len(state.sides) > self.columns
        return True

    def stop_first(self) -> bool:
        """End the answers under way; whether there were any. Ctrl+C asks this before it leaves the program."""
        if not self.answering or self.feed is None:
            return False
        self.feed.send(Stop())
        return True

    async def on_key(self, event: events.Key) -> None:
        """A key that leads into the field does so at once; what was typed behind it is the field's too."""
        self._leaving = self._leaving and event.key in ("escape", "backspace")
        action = _INTO_FIELD.get(event.key)
        if self.focused is self.field:
            if event.is_printable or event.key in ("enter", "backspace"):
                event.stop()
                self.field.post_message(events.Key(event.key, event.character))
        elif self.focused is None and action is not None:
            event.stop()
            await self.run_action(action)

    def action_write(self) -> None:
        """Into the field."""
        self.set_focus(self.field)

    async def action_again(self) -> None:
        """The newest question again; with the next seed when nothing else has changed."""
        state = self.state
        if state is None or state.phase is not Phase.READY or not state.prompt or self._setting:
            return
        if self._answered == self._settings_now():
            if state.sampling.temperature == 0:
                await self._say(_SAME)
                return
            state.sampling = msgspec.structs.replace(state.sampling, seed=(state.sampling.seed + 1) % SEEDS)
        self._ask(state.again())
        await self.show_chat()
        self.refresh_bindings()

    async def action_clear(self) -> None:
        """A new conversation."""
        if self.state is not None and not self.answering:
            self.state.clear()
            await self._say("A new conversation. What was said before is saved.")
            self.refresh_bindings()

    async def action_sent(self) -> None:
        """The very text that was sent, and back."""
        self.shows_sent = not self.shows_sent
        state = self.state
        draft = self.field.question.strip()
        if self.shows_sent and state is not None and state.phase is Phase.READY and draft and self.feed is not None:
            self.feed.send(state.show(draft))
        await self.show_chat()

    async def action_set(self, name: str) -> None:
        """Type another seed or temperature."""
        if self.state is None or self.answering:
            return
        self._setting = name
        self.field.take_other(as_typed(self.state.sampling, name))
        self.set_focus(self.field)
        await self.show_chat()

    async def action_next(self) -> None:
        """The next side into the first column."""
        if self.state is not None and len(self.state.sides) > self.columns:
            self.first = (self.first + 1) % len(self.state.sides)
            await self.show_chat()

    def action_page(self, pages: int) -> None:
        """Scroll every column."""
        for column in self.query(ChatColumn):
            column.scroll_relative(y=pages * max(column.size.height - 2, 1), animate=False)

    async def action_away(self) -> None:
        """Back, the second time: an Escape may have been for an answer that was just over."""
        if self._leaving or self.state is None or not self.state.prompt:
            self.dismiss()
            return
        self._leaving = True
        await self._say("Esc again leaves; the models leave memory, the conversation is saved.")

    def action_back(self) -> None:
        """One screen back."""
        self.dismiss()

    def action_help(self) -> None:
        """The keys of this screen."""
        self.app.push_screen(HelpScreen.of(self))

    async def action_leave(self) -> None:
        """Leave the program."""
        await self.app.run_action("leave" if hasattr(self.app, "action_leave") else "quit")
