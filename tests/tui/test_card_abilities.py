"""The card of a continuation run: abilities, texts, benchmarks, stages and recoveries, at every size."""

from __future__ import annotations

import pytest

from engine.jobs.card_io import write_card
from scaler_tui.screens.card import CardScreen
from scaler_tui.terminal import RenderPolicy
from tests.support.continuation_runs import Continuation, continuation_card, write_continuation
from tests.support.screen_host import ScreenHost, until, visible
from tests.tui.test_card_screen import everything

TEXTS = (
    "Arithmetic fell from 91 % to 78 %, significant.", "[-17.0, -9.0], 150 pairs", "1.6164", "-15.5 %", "78.3 ± 4.1 %",
    "2 wider", "80 steps, 328K tokens", "loss spike", "Micro-batches of 4 instead of 8", "1 ability was lost",
)  # fmt: skip


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_the_card_says_what_became_of_every_ability(size: tuple[int, int]) -> None:
    run_dir = write_continuation(Continuation(outcome="finished", steps=240))
    write_card(run_dir, continuation_card(run_dir))
    screen = CardScreen(run_dir)
    app = ScreenHost(screen)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "It learned the text" in visible(app))
        text = " ".join((await everything(screen, app, pilot)).split())
        for expected in TEXTS:
            assert expected in text, expected
        assert "m Merge" not in text  # a whole model is nothing to merge
        assert all(len(line) <= size[0] for line in visible(app).splitlines())


async def test_a_held_result_is_the_first_thing_said_and_ascii_stays_ascii() -> None:
    run_dir = write_continuation(Continuation(outcome="finished", steps=240))
    write_card(run_dir, continuation_card(run_dir, held="demo_arithmetic lost 13 points, and 5 are allowed."))
    screen = CardScreen(run_dir)
    app = ScreenHost(screen, RenderPolicy(unicode=False))
    async with app.run_test(size=(80, 60)) as pilot:
        await until(pilot, lambda: "It was not promoted." in visible(app))
        assert "x Not promoted: demo_arithmetic lost 13 points, and 5 are allowed." in visible(app)
        assert visible(app).isascii(), [c for c in visible(app) if ord(c) > 127]
