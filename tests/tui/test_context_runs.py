"""A run about a longer window on its screens: what is measured while it runs, and the card with all of it by length."""

from __future__ import annotations

import time
from typing import Any

import pytest

from engine.jobs import events as ev
from engine.jobs.card_io import write_card
from engine.jobs.spec import Task
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.run import RunScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.run_figures import detail_rows
from scaler_tui.widgets.spec_words import setting_lines
from tests.support.context_runs import context_card, context_spec, write_context_run
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import ScreenHost, until, visible
from tests.support.wizard_app import SIZES
from tests.tui.test_card_screen import everything

LOOKS = [(SIZES[0], False), (SIZES[1], True), (SIZES[2], True)]


@pytest.mark.parametrize(("size", "unicode"), LOOKS)
async def test_the_card_has_verdict_curve_maps_short_text_and_readers(size: tuple[int, int], unicode: bool) -> None:
    run_dir = write_golden(Golden(steps=120, outcome="finished"))
    write_card(run_dir, context_card())
    app = ScreenHost(CardScreen(run_dir), RenderPolicy(unicode=unicode))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "It learned the task" in visible(app))
        text = await everything(app.first, app, pilot)
        for expected in (
            "By length", "Works to 1k (needle 95 %), short text", "29.40", "9.90", "needle, before", "needle, after",
            "right answers:", "short text 11.00 to 11.05", "+0.5 %", "transformers 5", "exact: Every setting", "lost:",
        ):  # fmt: skip
            assert expected in text, expected
        assert all(len(line) <= size[0] for line in text.splitlines())
        beside = any("needle, before" in line and "needle, after" in line for line in text.splitlines())
        assert beside is (size[0] >= 80)
        full, none = ("█", "·") if unicode else ("#", ".")
        assert f"{full} 100" in text
        assert f"{none}   0" in text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (
            ev.Phase(t=0, name="choosing method", detail="yarn: needles at 512", done=30, total=120),
            "yarn: needles at 512",
        ),
        (
            ev.Phase(t=0, name="measuring lengths", detail="perplexity at 1,024", done=30, total=120),
            "perplexity at 1,024",
        ),
    ],
)
async def test_a_run_says_what_it_measures_how_far_it_is_and_how_it_will_train(
    size: tuple[int, int], phase: ev.Phase, words: str
) -> None:
    run_dir = write_context_run(context_spec(), ev.Phase(**{**_fields(phase), "t": time.time()}))
    app = ScreenHost(RunScreen(run_dir))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: phase.name in visible(app))
        text = visible(app)
        assert "evaluating" in text
        assert "to 1k, PoSE" in text
        assert words in text
        assert "25 %" in text


def _fields(phase: ev.Phase) -> dict[str, Any]:
    return {name: getattr(phase, name) for name in ("name", "detail", "done", "total")}


async def test_a_run_that_only_extends_promises_no_curve() -> None:
    spec = context_spec(Task.EXTEND, method="yarn")
    app = ScreenHost(RunScreen(write_context_run(spec, ev.Phase(t=time.time(), name="measuring lengths"))))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "measuring lengths" in visible(app))
        assert "This run trains nothing: it writes and measures." in visible(app)
        assert "no training" in visible(app)


def words_of(task: Task, **changes: Any) -> dict[str, str]:
    """Label -> words on the review."""
    return dict(setting_lines(context_spec(task, **changes)))


def test_the_review_says_to_where_how_and_what_is_measured() -> None:
    pose = words_of(Task.LORA, method="yarn", train_length=128, max_short_loss=0.05)
    assert pose["Window"] == "to 1,024 tokens; by yarn"
    assert pose["Length"].startswith("PoSE: ")
    assert "128 tokens in 2 pieces" in pose["Length"]
    assert pose["Also"] == "norms learn too"
    assert "5% worse" in pose["Gate"]
    assert "Adapter" in pose
    mixed = words_of(Task.LORA, window="mixed", short_share=0.3)
    assert "30% of the tokens in the old window" in mixed["Length"]
    auto = words_of(Task.EXTEND)
    assert "the best is taken" in auto["Window"]
    assert auto["Training"] == "none: the new positions are written and measured; no weight changes"
    assert "links" in auto["Saved"]
    assert "Adapter" not in auto


def test_details_of_an_extension_name_no_adapter_and_no_rows() -> None:
    from engine.jobs.state import RunState

    rows = dict(detail_rows(context_spec(Task.EXTEND), RunState(), "/runs/x"))
    assert "window" in rows
    assert not {"adapter", "data", "batch", "learns"} & set(rows)
    trained = dict(detail_rows(context_spec(), RunState(), "/runs/x"))
    assert {"adapter", "data", "batch", "window", "length"} <= set(trained)
