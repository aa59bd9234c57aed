"""The before/after card: figures, verdicts in words, samples, files, merge on request."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.jobs.card_html import render
from engine.jobs.card_io import write_card
from engine.jobs.layout import CARD, CARD_PAGE
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.problem import ProblemScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets import card_words
from tests.support.golden_runs import Golden, golden_card, write_golden
from tests.support.screen_host import ScreenHost, until, visible


def finished(*, merged: bool = False, forgot: bool = False) -> Path:
    run_dir = write_golden(Golden(steps=120, outcome="finished"))
    write_card(run_dir, golden_card(run_dir, merged=merged, forgot=forgot))
    return run_dir


CARD_TEXTS = (
    "2.9100", "0.5200", "much better", "3 %", "86 %", "+83 points", "clearly better", "6.31", "6.52",
    "little forgotten", "1.22 GiB", "as predicted", "I do not know that.", "They trade salt and river glass.",
    "147K parameters",
    "not yet; m writes it", "120 steps", "2 attempts",
)  # fmt: skip


async def everything(screen: CardScreen, app: ScreenHost, pilot: object) -> str:
    """The text of the whole card, scrolled through by half pages: what one page cuts in two is whole in the next."""
    seen = [visible(app)]
    scroll = screen.query_one("#card")
    while scroll.scroll_offset.y < scroll.max_scroll_y:
        scroll.scroll_relative(y=scroll.size.height // 2, animate=False)
        await pilot.pause()  # type: ignore[attr-defined]
        seen.append(visible(app))
    return "\n".join(seen)


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_the_card_says_what_was_learned_and_what_forgotten(size: tuple[int, int]) -> None:
    run_dir = finished()
    screen = CardScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "It learned the task" in visible(app))
        text = await everything(screen, app, pilot)
        for expected in CARD_TEXTS:
            assert expected in text, expected
        assert "output/adapter" in "".join(text.split())  # a long path may be wrapped, not cut
        assert all(len(line) <= size[0] for line in text.splitlines())


@pytest.mark.parametrize(("width", "side_by_side"), [(80, False), (120, True)])
async def test_samples_stack_under_a_hundred_columns(width: int, side_by_side: bool) -> None:
    screen = CardScreen(finished())
    app = ScreenHost(screen)
    async with app.run_test(size=(width, 60)) as pilot:
        await until(pilot, lambda: "river glass" in visible(app))
        together = any("I do not know that." in line and "river glass" in line for line in visible(app).splitlines())
        assert together is side_by_side


async def test_forgetting_is_a_warning_in_the_headline() -> None:
    screen = CardScreen(finished(forgot=True))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "much forgotten" in visible(app))
        assert "! It learned the task" in visible(app)
        assert "✗ much forgotten" in visible(app)


async def test_h_shows_where_the_page_is() -> None:
    run_dir = finished()
    screen = CardScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(160, 30)) as pilot:
        await until(pilot, lambda: screen.card is not None)
        await pilot.press("h")
        await until(pilot, lambda: f"Open in a browser: {run_dir / CARD_PAGE}" in visible(app).replace("\n", ""))


async def test_a_merged_model_shows_its_check_and_cannot_be_merged_again() -> None:
    screen = CardScreen(finished(merged=True))
    app = ScreenHost(screen)
    async with app.run_test(size=(100, 60)) as pilot:
        await until(pilot, lambda: "same next token at 99.7 % of positions" in visible(app))
        assert "task loss 0.5210 merged, 0.5200 adapter on nf4" in visible(app)
        await pilot.press("m")
        await pilot.pause()
        assert not screen.merging


async def test_m_merges_in_a_process_of_its_own_and_shows_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = finished()
    merged = msgspec.json.encode(golden_card(run_dir, merged=True))
    (tmp_path / "merged.json").write_bytes(merged)
    program = tmp_path / "python"
    lines = ("#!/bin/sh", f'echo "$@" > {tmp_path}/called', f"cp {tmp_path}/merged.json {run_dir / CARD}", "echo {}")
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    screen = CardScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=(100, 60)) as pilot:
        await until(pilot, lambda: screen.card is not None)
        await pilot.press("m")
        await until(pilot, lambda: "same next token at 99.7 % of positions" in visible(app))
        assert "Merged." in visible(app)
        assert not screen.merging
    assert (tmp_path / "called").read_text().split() == ["-m", "scaler_tui", "merge", "--json", run_dir.name]


async def test_a_merge_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'libraries failed: there is no room left' >&2\nexit 5\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    screen = CardScreen(finished())
    app = ScreenHost(screen)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: screen.card is not None)
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, ProblemScreen))
        assert "there is no room left" in visible(app)
        assert not screen.merging


async def test_a_run_without_a_card_says_so() -> None:
    screen = CardScreen(write_golden(Golden()))
    app = ScreenHost(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "has no card yet" in visible(app))


async def test_without_unicode_every_character_is_ascii() -> None:
    screen = CardScreen(finished(merged=True))
    app = ScreenHost(screen, RenderPolicy(unicode=False))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: screen.card is not None)
        assert (await everything(screen, app, pilot)).isascii()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(2.0, 0.5, "much better"), (2.0, 1.9, "better"), (2.0, 1.99, "no real change"), (2.0, 2.4, "worse than before"),
     (2.0, float("nan"), "broken: not a number")],
)  # fmt: skip
def test_the_verdict_on_the_loss(before: float, after: float, words: str) -> None:
    assert card_words.loss_row(before, after).verdict == words


def test_few_rows_cannot_prove_a_small_change() -> None:
    assert "no clear change" in card_words.exact_row(0.40, 0.48, 64).verdict
    assert card_words.exact_row(0.40, 0.48, 6400).verdict == "clearly better"


@pytest.mark.parametrize(("after", "words"), [(6.0, "nothing"), (6.4, "little"), (7.5, "some"), (12.0, "much")])
def test_the_verdict_on_forgetting(after: float, words: str) -> None:
    assert card_words.forgetting_row(6.0, after).verdict.startswith(words)


def test_without_held_out_text_no_loss_is_shown_and_nothing_is_said_to_be_learned() -> None:
    run_dir = write_golden(Golden(steps=120, outcome="finished"))
    card = golden_card(run_dir)
    assert card.before is not None
    assert card.after is not None
    none = {"task_loss": 0.0, "task_tokens": 0, "exact_match": None}
    card = msgspec.structs.replace(
        card, before=msgspec.structs.replace(card.before, **none), after=msgspec.structs.replace(card.after, **none)
    )
    assert "task loss" not in {row.name for row in card_words.score_rows(card)}
    assert "no text was set aside" in card_words.headline(card, unicode=True).plain
    assert "Loss on held-out rows" not in render(card)
