"""Adapters in the wizard: chosen, weighed, scored while they move, searched, written; wrong ones refused in words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.adapters.folder import read_adapter
from engine.errors import EngineError
from engine.jobs.spec_mix import MixMethod
from engine.jobs.spec_toml import load_spec
from engine.resources import demo_model_dir
from scaler_tui import mix_process
from scaler_tui.feeds import adapters_feed
from scaler_tui.glyphs import glyphs
from scaler_tui.mixing import PLAIN, SETTINGS, Listed, Mixing
from scaler_tui.screens.adapters import AdaptersScreen
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.problem import ConfirmScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.mix_lines import score_verdict, shown_name, slider_text
from scaler_tui.widgets.status_line import clip_middle
from tests.support.adapters import plain_adapter
from tests.support.golden_runs import Golden, golden_card, write_golden
from tests.support.mix_scorer import loss_of
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, known_machine, opened, press, type_text

SCORER = Path(__file__).parents[1] / "support" / "mix_scorer.py"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known_machine(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mix_process, "PROGRAM", (sys.executable, str(SCORER)))
    monkeypatch.setenv("PYTHONPATH", str(SCORER.parents[2]))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of the demo model."""
    folder = tmp_path_factory.mktemp("adapters")
    return [plain_adapter(demo_model_dir(), folder / name, seed=n) for n, name in enumerate(("facts", "tone", "copy"))]


def runs_with(adapters: list[Path]) -> list[Path]:
    """A finished run for each, newest last."""
    found = []
    for adapter in adapters:
        run_dir = write_golden(Golden(outcome="finished", name=adapter.name))
        shutil.copytree(adapter, run_dir / "output" / "adapter")
        found.append(run_dir)
    return found


def flat(app: Any) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def adapters_screen(app: Any, pilot: Any) -> AdaptersScreen:
    """By the menu of the welcome screen."""
    number = next(n for n, entry in enumerate(app.screen._entries(), 1) if entry[0] == "adapters")
    await press(pilot, str(number))
    screen = app.screen
    assert isinstance(screen, AdaptersScreen)
    await until(pilot, lambda: screen.looked, seconds=60)
    return screen


async def put_in(pilot: Any, screen: AdaptersScreen, *names: str) -> None:
    """Point at each and press space."""
    for name in names:
        place = next(n for n, one in enumerate(screen.mixing.listed) if one.name == name)
        screen.pointer = place
        await press(pilot, "space")


async def scored(pilot: Any, screen: AdaptersScreen) -> None:
    """The mix, the base and each alone have a figure."""
    mixing = screen.mixing
    await until(
        pilot,
        lambda: mixing.score() is not None and mixing.base_score() is not None
        and all(mixing.score_alone(one.folder) is not None for one in mixing.chosen),
        seconds=60,
    )  # fmt: skip


async def test_sliders_move_the_score_next_to_base_and_single_adapters(adapters: list[Path]) -> None:
    runs_with(adapters)
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        assert {one.name for one in screen.mixing.listed} == {"facts", "tone", "copy"}
        assert "Space puts the pointed adapter in" in flat(app)
        await put_in(pilot, screen, "facts", "tone")
        await scored(pilot, screen)
        mixing = screen.mixing
        assert mixing.score() == pytest.approx(loss_of(mixing.vector))
        seen = flat(app)
        assert f"mix {mixing.score():.4f}" in seen
        assert f"base {mixing.base_score():.4f}" in seen
        assert f"alone {mixing.score_alone(mixing.chosen[0].folder):.4f}" in seen
        before = mixing.vector
        await press(pilot, "left", "left", "shift+left", "shift+left")
        assert sum(mixing.vector) == pytest.approx(sum(before) - 0.6)
        await scored(pilot, screen)
        assert mixing.score() == pytest.approx(loss_of(mixing.vector))
        await press(pilot, "0")
        assert 0.0 in [mixing.weights[one.folder] for one in mixing.chosen]
        await press(pilot, "full_stop")
        await type_text(pilot, "35")
        await press(pilot, "enter")
        assert 0.35 in mixing.weights.values()
        await press(pilot, "minus")
        await type_text(pilot, "1000")
        await press(pilot, "enter")
        assert "is no number from -100 to 100" in flat(app)
        assert all(len(line) <= 80 for line in visible(app).splitlines())


async def test_a_sweep_sets_the_sliders_and_says_what_it_is_worth_elsewhere(adapters: list[Path]) -> None:
    runs_with(adapters[:2])
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts", "tone")
        await press(pilot, "s")
        await until(pilot, lambda: screen.swept is not None, seconds=60)
        assert sorted(screen.mixing.weights.values()) == [0.3, 0.6]
        seen = flat(app)
        assert "is the best of 4 sets" in seen
        assert "chosen for the 44 rows that were searched on" in seen
        assert "On 43 other rows" in seen
        await scored(pilot, screen)
        assert screen.mixing.score() == pytest.approx(2.0)
        assert "better than each alone" not in flat(app), "weights are no surprise on the rows they were fitted to"
        assert "fitted to these rows" in flat(app)


async def test_while_weights_are_searched_nothing_else_moves_and_escape_stops_it(
    adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_with(adapters[:2])
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts", "tone")
        monkeypatch.setenv("SWEEP_WAITS", "1")
        before = dict(screen.mixing.weights)
        await press(pilot, "s")
        await until(pilot, lambda: screen.tried is not None, seconds=60)
        assert "Esc Stop" in flat(app)
        await press(pilot, "right", "space", "0", "a")
        assert screen.mixing.weights == before
        assert screen.feed is None, "one process at a time"
        await press(pilot, "escape")
        assert screen.sweep is None
        await until(pilot, lambda: screen.feed is not None, seconds=60)
        assert isinstance(app.screen, AdaptersScreen)


async def test_a_typed_weight_stays_with_the_adapter_it_was_begun_for(adapters: list[Path]) -> None:
    runs_with(adapters[:2])
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, *(one.name for one in screen.mixing.listed))
        last = screen.mixing.listed[-1].folder
        await press(pilot, "4")
        assert f"Weight of {screen.mixing.of(last).name}:" in flat(app)
        await press(pilot, "down", "up", "enter")
        assert screen.mixing.weights[last] == 4.0
        await press(pilot, "right")
        assert screen.mixing.weights[last] == 4.0, "up does not lower it"
        await press(pilot, "down", "down", "down", "down")
        assert screen.setting == "rank"
        await press(pilot, "4", "full_stop", "7", "enter")
        assert "A rank is a whole number" in flat(app)
        assert screen.mixing.mix.rank == 0


async def test_a_list_that_cannot_be_read_says_so_and_is_read_again(
    adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_with(adapters[:1])

    def refused(*_: str) -> Any:
        raise EngineError("file.unreadable", "Cannot read the runs.")

    async with opened() as (app, pilot):
        with monkeypatch.context() as patch:
            patch.setattr(adapters_feed, "ask_twin", refused)
            screen = await adapters_screen(app, pilot)
            assert "Cannot read the runs. r tries again" in flat(app)
        await press(pilot, "r")
        await until(pilot, lambda: bool(screen.mixing.listed), seconds=60)
        assert "could not be listed" not in flat(app)


async def test_the_mix_is_written_as_adapter_and_as_a_job_and_nothing_is_replaced_unasked(
    adapters: list[Path], tmp_path: Path
) -> None:
    runs_with(adapters[:2])
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts", "tone")
        await press(pilot, "enter")
        field = screen.query_one("#mix-field")
        assert field.has_focus
        assert str(field.value).startswith(str(tmp_path))  # type: ignore[attr-defined]
        await press(pilot, "ctrl+u")
        await type_text(pilot, "mixed")
        await press(pilot, "enter")
        await until(pilot, lambda: bool(screen.result) or screen.refusal is not None, seconds=60)
        assert screen.refusal is None, screen.refusal
        assert read_adapter(tmp_path / "mixed").adapted
        assert "rounding" in flat(app), "an exact sum says that it is one"
        assert "scaler-wizard chat" in flat(app)
        await press(pilot, "enter", "ctrl+u")
        await type_text(pilot, "mixed")
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), seconds=60)
        await press(pilot, "n")
        await press(pilot, "w", "ctrl+u")
        await type_text(pilot, "my mix.toml")
        await press(pilot, "enter")
        spec = load_spec(tmp_path / "my mix.toml")
        assert spec.task.value == "mix"
        assert [one.weight for one in spec.adapters] == [1.0, 1.0]
        assert "scaler-wizard run 'my mix.toml'" in flat(app)
        await press(pilot, "w", "ctrl+u")
        await type_text(pilot, "my mix.toml")
        await press(pilot, "enter")
        assert "exists" in flat(app)


async def test_wrong_adapters_are_refused_in_words(adapters: list[Path], tmp_path: Path) -> None:
    runs_with(adapters[:1])
    other = tmp_path / "other"
    shutil.copytree(demo_model_dir(), other)
    foreign = plain_adapter(other, tmp_path / "foreign", seed=9)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text((adapters[0] / "adapter_config.json").read_text())
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04")
    orphan = plain_adapter(demo_model_dir(), tmp_path / "orphan", seed=3, named="nobody/nothing")
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts")
        for folder, words in (
            (tmp_path / "nowhere", "neither an adapter's folder nor a run"),
            (pickled, "only as pickle"),
            (foreign, "It belongs to another base"),
            (orphan, "is not on this machine"),
        ):
            await press(pilot, "a")
            await type_text(pilot, str(folder))
            await press(pilot, "enter")
            await until(pilot, lambda words=words: words in flat(app), seconds=60)
        assert [one.name for one in screen.mixing.chosen] == ["facts"], "none of them is in"
        assert all(len(line) <= 80 for line in visible(app).splitlines())


async def test_rows_that_cannot_be_scored_say_so_and_others_are_scored_again(
    adapters: list[Path], tmp_path: Path
) -> None:
    runs_with(adapters[:1])
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts")
        await scored(pilot, screen)
        await press(pilot, "d")
        await type_text(pilot, str(tmp_path / "refused.jsonl"))
        await press(pilot, "enter")
        await until(pilot, lambda: "has no usable row" in flat(app), seconds=60)
        await press(pilot, "d", "ctrl+u")
        await type_text(pilot, "demo")
        await press(pilot, "enter")
        await scored(pilot, screen)
        assert "44 rows of heldout.jsonl" in flat(app)


async def test_settings_follow_the_method_and_idle_ones_say_why(adapters: list[Path]) -> None:
    runs_with(adapters[:2])
    async with opened() as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts", "tone")
        await press(pilot, "down", "down", "up", "up")
        screen.pointer = len(screen.mixing.listed)
        assert screen.setting == "method"
        assert "only of ties, dare and magnitude" in flat(app)
        await press(pilot, "right", "right")
        assert screen.mixing.mix.method is MixMethod.TIES
        await press(pilot, "down", "left")
        assert screen.mixing.mix.density == 0.45
        assert "only of ties, dare and magnitude" not in flat(app)
        await scored(pilot, screen)
        assert screen.mixing.score() == pytest.approx(loss_of(screen.mixing.vector, screen.mixing.mix))
        assert {"--method", "ties", "--density", "0.45"} <= set(screen.mixing.words())


@pytest.mark.parametrize("size", SIZES)
async def test_it_fits_every_size_also_without_unicode(size: tuple[int, int], adapters: list[Path]) -> None:
    runs_with(adapters)
    async with opened(size, policy=RenderPolicy(unicode=False)) as (app, pilot):
        screen = await adapters_screen(app, pilot)
        await put_in(pilot, screen, "facts", "copy")
        await scored(pilot, screen)
        seen = visible(app)
        assert seen.isascii(), sorted({c for c in seen if not c.isascii()})
        assert all(len(line) <= size[0] for line in seen.splitlines())
        assert "method" in seen
        assert f"mix {screen.mixing.score():.4f}" in flat(app)


async def test_the_card_leads_to_its_adapter(adapters: list[Path]) -> None:
    from engine.jobs.card_io import write_card

    run_dir = runs_with(adapters[:1])[0]
    write_card(run_dir, golden_card(run_dir))
    async with opened() as (app, pilot):
        app.push_screen(CardScreen(run_dir))
        await until(pilot, lambda: isinstance(app.screen, CardScreen) and app.screen.card is not None)
        await press(pilot, "a")
        screen = app.screen
        assert isinstance(screen, AdaptersScreen)
        await until(pilot, lambda: bool(screen.mixing.weights), seconds=60)
        assert [one.name for one in screen.mixing.chosen] == ["facts"]


# ── the choice ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_mix_goes_before_everything_else_and_known_figures_are_not_asked_again() -> None:
    mixing = Mixing(listed=[Listed(name, Path(name), "b", "/b") for name in ("x", "y")])
    for one in mixing.listed:
        assert not mixing.toggle(one)
    mixing.began(mixing.wanted())
    assert mixing.next_wish() is None, "nobody is there to answer yet"
    from engine.jobs.mix_lines import Scored, Scorer

    mixing.scorer = Scorer(adapters=("x", "y"), rows=1, tokens=1, data="d", device="cpu", seconds=0)
    asked = []
    while (wish := mixing.next_wish()) is not None:
        asked.append(wish.weights)
        assert mixing.next_wish() is None, "one at a time"
        mixing.heard(Scored(id=wish.id, weights=wish.weights, loss=1.0, seconds=0))
    assert asked == [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    mixing.shift(Path("x"), -0.05)
    wish = mixing.next_wish()
    assert wish is not None
    assert wish.weights == (0.95, 1.0)
    mixing.shift(Path("x"), -0.05)
    newer = mixing.next_wish()
    assert newer is not None
    assert newer.weights == (0.9, 1.0), "what is on the sliders now makes the older one stale"
    mixing.heard(Scored(id=wish.id, weights=wish.weights, loss=3.0, seconds=0))
    assert mixing.score() is None
    assert mixing.next_wish() is None


@pytest.mark.parametrize(("weight", "place"), [(-1.0, 0), (0.0, 10), (2.0, 30), (5.0, 30), (-3.0, 0)])
def test_a_slider_is_as_wide_as_it_says_and_marks_what_lies_beyond(weight: float, place: int) -> None:
    for unicode in (True, False):
        drawn = slider_text(weight, 31, unicode=unicode)
        assert len(drawn) == 31
        beyond = "▸" if unicode else ">"
        below = "◂" if unicode else "<"
        knob = "●" if unicode else "#"
        assert drawn[place] == (beyond if weight > 2 else below if weight < -1 else knob)


def test_no_verdict_before_every_adapter_is_measured_and_names_are_names_of_files() -> None:
    mixing = Mixing(listed=[Listed(name, Path(name), "b", "/b") for name in ("demo: a/b", "y")])
    for one in mixing.listed:
        mixing.toggle(one)
    mixing.began(mixing.wanted())
    mixing.known = {((1.0, 1.0), PLAIN): 1.5, ((0.0, 0.0), PLAIN): 2.0, ((1.0, 0.0), PLAIN): 1.8}
    assert not score_verdict(mixing, glyphs(True)).plain
    mixing.known[(0.0, 1.0), PLAIN] = 1.7
    assert "better than each alone" in score_verdict(mixing, glyphs(True)).plain
    assert mixing.name() == "mix-of-demo-a-b-and-y"
    mixing.listed[1] = Listed("long" * 20, Path("y"), "b", "/b")
    assert mixing.name() == "mix-of-2-adapters"


def test_names_that_differ_at_their_ends_stay_apart() -> None:
    shown = {clip_middle(f"demo-distillation {tail}", 16) for tail in ("1a2b", "3c4d")}
    assert len(shown) == 2
    assert all(len(one) == 16 for one in shown)
    names = [f"demo-distillation: {what}, seed 3" for what in ("labels alone", "labels and teacher", "teacher, T = 2")]
    shown = {shown_name(name, names, 17, unicode=True) for name in names}
    assert len(shown) == 3, "the same beginning and the same end"


def test_settings_are_all_drawn() -> None:
    assert json.loads(json.dumps(SETTINGS)) == ["method", "density", "signs", "rank"]
