"""Export in the wizard: sizes before, figures after, refusals in words, nothing replaced unasked."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs.card_io import write_card
from engine.jobs.export_report import ExportedFile, ExportReport
from scaler_tui.feeds import mix_feed
from scaler_tui.feeds import twin as twin_feed
from scaler_tui.glyphs import glyphs
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.export import ExportScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.export_lines import noise_of, type_line
from tests.support.golden_results import agreement
from tests.support.golden_runs import Golden, golden_card, write_golden
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, known_machine, opened, press, type_text

SIZES_TOLD = {"f16": 6_800_000, "q8_0": 3_700_000, "q4_k_m": 2_100_000}


REPORT = ExportReport(
    destination="gguf",
    source="/x",
    files=(
        ExportedFile(path="/x/model-q8_0.gguf", size_bytes=3_712_000, kind="q8_0", agreement=agreement(0.0003)),
        ExportedFile(
            path="/x/model-q4_k_m.gguf", size_bytes=2_110_000, kind="q4_k_m", agreement=agreement(0.031, same=0.962)
        ),
    ),
    flags=("Its own sliding window is not told to older programs.",),
    next_step="llama-cli -m /x/model-q4_k_m.gguf",
)


class Twin:
    """Answers as the `export` command does, when it is told to go on."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.go_on = threading.Event()
        self.errors: list[EngineError] = []

    def __call__(self, *words: str, say: Any = None, begun: Any = None) -> dict[str, Any]:
        self.asked.append(words)
        if begun is not None:
            begun(self)
        if "--sizes" in words:
            return {"sizes": SIZES_TOLD}
        if say is not None:
            say("writing  1.10 of 3.71 MiB  29 %")
        assert self.go_on.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        return {**msgspec.to_builtins(REPORT), "created": "", "pushed": ""}

    def terminate(self) -> None:
        """As its process does when it is told to end."""
        self.errors = [EngineError("interrupted", "Interrupted.")]
        self.go_on.set()


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Twin:
    known_machine(monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = Twin()
    monkeypatch.setattr(mix_feed, "ask_twin", found)
    monkeypatch.setattr(twin_feed, "ask_twin", found)
    return found


def flat(app: Any) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def from_card(app: Any, pilot: Any) -> tuple[ExportScreen, Path]:
    """By its key from the card of a finished run."""
    run_dir = write_golden(Golden(outcome="finished"))
    write_card(run_dir, golden_card(run_dir))
    app.push_screen(CardScreen(run_dir))
    await until(pilot, lambda: isinstance(app.screen, CardScreen) and app.screen.card is not None)
    await press(pilot, "x")
    screen = app.screen
    assert isinstance(screen, ExportScreen)
    await until(pilot, lambda: bool(screen.sizes))
    return screen, run_dir


async def test_sizes_are_shown_before_and_perplexity_after(twin: Twin) -> None:
    async with opened() as (app, pilot):
        screen, run_dir = await from_card(app, pilot)
        seen = flat(app)
        assert "q8_0 3.53 MiB" in seen
        assert "q4_k_m 2.00 MiB" in seen
        assert "perplexity is compared" in seen
        screen.pointer = screen.rows.index(("type", "q4_k_m"))
        await press(pilot, "space", "enter")
        await until(pilot, lambda: "29 %" in flat(app))
        assert screen.busy
        twin.go_on.set()
        await until(pilot, lambda: not screen.busy)
        asked = twin.asked[-1]
        assert asked[:3] == ("export", "gguf", str(run_dir))
        assert [word for word, flag in zip(asked[1:], asked, strict=False) if flag == "--type"] == ["q8_0", "q4_k_m"]
        assert "--force" not in asked
        seen = flat(app)
        assert "q4_k_m 2.01 MiB 96.2 % same token of 812 perplexity 7.732 (+3.1 %)" in " ".join(seen.split()), seen
        assert "7.502 unchanged" in seen
        assert "Its own sliding window" in seen
        assert all(len(line) <= 80 for line in visible(app).splitlines())


async def test_what_exists_is_replaced_only_when_that_was_agreed_to(twin: Twin) -> None:
    twin.go_on.set()
    twin.errors = [EngineError("export.exists", "/x/out exists already.", next_step="Choose another name.")]
    async with opened() as (app, pilot):
        screen, _ = await from_card(app, pilot)
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        assert "/x/out exists already" in flat(app)
        await press(pilot, "n")
        assert "--force" not in twin.asked[-1]
        twin.errors = [EngineError("export.exists", "/x/out exists already.")]
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await press(pilot, "y")
        await until(pilot, lambda: screen.report is not None)
        assert "--force" in twin.asked[-1]


async def test_a_refusal_says_what_why_and_the_way_out(twin: Twin) -> None:
    twin.go_on.set()
    twin.errors = [
        EngineError(
            "export.no_quantiser",
            "q4_k_m needs llama.cpp's quantiser.",
            cause="llama-cpp-python is not installed.",
            next_step="Install it: pip install scaler-wizard[gguf]",
        )
    ]
    async with opened() as (app, pilot):
        screen, _ = await from_card(app, pilot)
        screen.pointer = screen.rows.index(("type", "q8_0"))
        await press(pilot, "space", "enter")
        assert "No size is chosen" in flat(app)
        await press(pilot, "space", "enter")
        await until(pilot, lambda: "needs llama.cpp's quantiser" in flat(app))
        assert "pip install scaler-wizard[gguf]" in flat(app)


async def test_destinations_folder_adapter_and_comparison_become_flags(twin: Twin, tmp_path: Path) -> None:
    twin.go_on.set()
    async with opened() as (app, pilot):
        screen, _ = await from_card(app, pilot)
        await press(pilot, "3")
        screen.pointer = screen.rows.index(("option", "adapter"))
        await press(pilot, "space", "down", "space", "t")
        await type_text(pilot, "mine")
        await press(pilot, "enter", "enter")
        await until(pilot, lambda: screen.report is not None)
        asked = twin.asked[-1]
        assert asked[1] == "ollama"
        assert {"--adapter", "--no-verify"} <= set(asked)
        assert asked[asked.index("--out") + 1] == str(tmp_path / "mine")
        await press(pilot, "1")
        assert ("option", "adapter") not in screen.rows, "a folder for transformers has no sizes and no Modelfile"
        await press(pilot, "enter")
        await until(pilot, lambda: not screen.busy)
        assert "--type" not in twin.asked[-1]
        assert "--adapter" not in twin.asked[-1]


@pytest.mark.parametrize("size", SIZES)
async def test_it_fits_every_size_also_without_unicode(size: tuple[int, int], twin: Twin) -> None:
    twin.go_on.set()
    async with opened(size, policy=RenderPolicy(unicode=False)) as (app, pilot):
        screen, _ = await from_card(app, pilot)
        await press(pilot, "enter")
        await until(pilot, lambda: screen.report is not None)
        seen = visible(app)
        assert seen.isascii(), sorted({c for c in seen if not c.isascii()})
        assert all(len(line) <= size[0] for line in seen.splitlines())
        assert "GGUF file" in seen


async def test_an_end_is_said_where_the_screen_was_left(twin: Twin) -> None:
    twin.errors = [EngineError("export.failed", "The disk is full.", next_step="Free 3 MB.")]
    async with opened() as (app, pilot):
        await from_card(app, pilot)
        await press(pilot, "enter", "b")
        assert isinstance(app.screen, CardScreen)
        twin.go_on.set()
        await until(pilot, lambda: any("The disk is full" in str(note.message) for note in app._notifications))


async def test_a_running_export_is_found_again_and_can_be_stopped(twin: Twin) -> None:
    async with opened() as (app, pilot):
        _, run_dir = await from_card(app, pilot)
        await press(pilot, "3", "enter")
        await until(pilot, lambda: "29 %" in flat(app))
        await press(pilot, "b", "x")
        screen = app.screen
        assert isinstance(screen, ExportScreen)
        assert screen.busy
        assert "Exporting for Ollama" in flat(app)
        assert "29 %" in flat(app)
        await press(pilot, "s")
        await until(pilot, lambda: not screen.busy)
        assert "The export was stopped" in flat(app)
        assert sum("--sizes" not in asked for asked in twin.asked) == 1
        await press(pilot, "b", "x")
        assert "stopped" not in flat(app), "another look begins afresh"
        assert screen.source == run_dir


async def test_leaving_asks_while_an_export_runs(twin: Twin) -> None:
    async with opened() as (app, pilot):
        screen, _ = await from_card(app, pilot)
        await press(pilot, "enter")
        await until(pilot, lambda: "29 %" in flat(app))
        await press(pilot, "q")
        assert isinstance(app.screen, ConfirmScreen)
        assert "leave and stop it" in flat(app)
        await press(pilot, "n")
        assert screen.is_current
        assert screen.busy
        await press(pilot, "q", "y")
        await until(pilot, twin.go_on.is_set)
        assert app._exit


async def test_only_the_question_about_the_export_is_answered_by_leaving_again(twin: Twin) -> None:
    async with opened() as (app, pilot):
        screen, _ = await from_card(app, pilot)
        await press(pilot, "enter")
        await until(pilot, lambda: "29 %" in flat(app))
        app.push_screen(ConfirmScreen("Something else?"))
        await pilot.pause()
        await press(pilot, "ctrl+c")
        assert "leave and stop it" in flat(app), "the question that is open says nothing of the export"
        assert screen.busy
        assert not app._exit
        await press(pilot, "ctrl+c")
        await until(pilot, twin.go_on.is_set)
        assert app._exit


async def test_the_runs_list_hands_on_what_was_measured_before(twin: Twin) -> None:
    run_dir = write_golden(Golden(outcome="finished"))
    write_card(run_dir, msgspec.structs.replace(golden_card(run_dir), exports=(REPORT,)))
    async with opened() as (app, pilot):
        app.push_screen(ExportScreen(run_dir, "it", adapter=True))
        await until(pilot, lambda: "96.2 % same" in flat(app))


def test_noise_is_of_the_tokens_of_held_out_text_and_hides_no_loss() -> None:
    found = msgspec.structs.replace(agreement(0.045, same=0.985), tokens_compared=95, perplexity_tokens=1005)
    assert noise_of(found) == pytest.approx(0.0158, abs=1e-4)
    wide = type_line("q4_k_m", 1, found, 100, glyphs(True), chosen=True, pointed=False)
    assert "(+4.5 %) over 1,005" in wide.plain
    assert "noise" not in wide.plain
    assert any("warning" in str(span.style) for span in wide.spans)
    narrow = type_line("q4_k_m", 1, found, 78, glyphs(True), chosen=True, pointed=False)
    assert "(+4.5 %)" in narrow.plain


def test_a_change_of_few_positions_is_called_noise() -> None:
    few = msgspec.structs.replace(agreement(-0.023, same=0.97), tokens_compared=153)
    line = type_line("q4_k_m", 1, few, 78, glyphs(True), chosen=True, pointed=False)
    assert "within noise" in line.plain
    assert "97.0 % same of 153" in line.plain
    assert not any("success" in str(span.style) for span in line.spans)
