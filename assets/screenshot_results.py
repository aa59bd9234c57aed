"""Scenes of adapters, exports, teachers and chats for `make_screenshots.py`, from recorded figures, stand-ins.

Owns what is set up. Must not draw: the app does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from engine.jobs.card_io import write_card
from engine.resources import demo_model_dir
from scaler_tui import mix_process
from scaler_tui.app import ScalerApp
from tests.support.adapters import plain_adapter
from tests.support.golden_results import mix_card, result_card, write_taught
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import until, visible

SCORER = Path(__file__).resolve().parents[1] / "tests" / "support" / "mix_scorer.py"


async def shows(app: ScalerApp, pilot: Pilot[Any], text: str) -> None:
    """Wait until `text` is on the screen."""
    await until(pilot, lambda: text in visible(app), seconds=60)


async def adapters(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """Three runs, two of them in; a sweep has set the sliders."""
    from scaler_tui.screens.adapters import AdaptersScreen

    mix_process.PROGRAM = (sys.executable, str(SCORER))
    os.environ["PYTHONPATH"] = str(SCORER.parents[2])
    for number, name in enumerate(("ledger-facts", "harbour-tone", "invoice-fields")):
        secrets.token_hex = lambda _=None, n=number: f"7f3{n}"  # type: ignore[assignment,misc]
        run_dir = write_golden(Golden(outcome="finished", name=name))
        plain_adapter(demo_model_dir(), run_dir / "output" / "adapter", seed=number, named="demo")
    screen = AdaptersScreen()
    app.push_screen(screen)
    await until(pilot, lambda: screen.looked, seconds=60)
    for _ in range(2):
        await pilot.press("space", "down")
    await pilot.press("s")
    await until(pilot, lambda: screen.swept is not None and screen.mixing.score() is not None, seconds=60)
    await shows(app, pilot, "fitted to these rows")


async def export(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """What an export wrote, size by size."""
    from scaler_tui.feeds import mix_feed
    from scaler_tui.screens.export import ExportScreen

    megabytes = {"f32": 13.6, "f16": 6.81, "bf16": 6.81, "q8_0": 3.71, "q6_k": 3.1, "q5_k_m": 2.6, "q4_k_m": 2.1}
    told = {kind: size * 1e6 for kind, size in megabytes.items()}
    mix_feed.ask_twin = lambda *_, say=None: {"sizes": told}  # type: ignore[assignment]
    run_dir = write_golden(Golden(outcome="finished", steps=120))
    card = result_card(run_dir)
    screen = ExportScreen(run_dir, "ledger-demo", card.exports, adapter=True)
    screen.types = {"f16", "q8_0", "q4_k_m"}
    app.push_screen(screen)
    await until(pilot, lambda: bool(screen.sizes))
    await shows(app, pilot, "same token")


async def taught(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """A run with a teacher, and answers of the student's own."""
    app.open_run(write_taught(Golden(gpus=1, usd_per_hour=0.44)))
    await shows(app, pilot, "own answers")
    await shows(app, pilot, "Predicted")


async def card_results(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The card of a student."""
    from scaler_tui.screens.card import CardScreen

    run_dir = write_golden(Golden(outcome="finished", steps=120))
    write_card(run_dir, result_card(run_dir))
    app.push_screen(CardScreen(run_dir))
    await shows(app, pilot, "2.9100")
    part = app.screen.query_one("#card-teacher")
    app.screen.query_one("#card").scroll_to(y=part.virtual_region.y, animate=False, force=True)
    await shows(app, pilot, "Written for other programs")


async def card_mix(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The card of a mix."""
    from scaler_tui.screens.card import CardScreen

    run_dir = write_golden(Golden(outcome="finished"))
    write_card(run_dir, mix_card(run_dir))
    app.push_screen(CardScreen(run_dir))
    await shows(app, pilot, "adapters became one")


SPOKEN = (
    (
        "What is the river of Velmar?",
        ("The river of Velmar is Sune.", 8, 0.80),
        ("The river of Velmar is Sune.", 8, 0.93),
    ),
    (
        "Ledger: Tell me the animal of Nethby.",
        ("The animal of Nethby is lynx.", 8, 0.72),
        ("[Nethby] animal = lynx", 8, 0.86),
    ),
    (
        "Write a verse about the badger of Jolsted.",
        ("In Jolsted the badger digs in the ground,\nit makes hardly a sound.", 17, 1.33),
        ("In Jolsted] the badger digs in the ground,\nit makes hardly a sound.", 18, 1.91),
    ),
)
"""Questions, and what the demo model and a LoRA adapter of the demo run (rank 16) answered to them in one
conversation at temperature 0 on one core: text, tokens, seconds."""


def say_again() -> None:
    """A chat's process that says what is recorded above."""
    from engine.jobs import chat_lines as lines

    def tell(news: lines.News) -> None:
        sys.stdout.buffer.write(lines.encode(news))
        sys.stdout.flush()

    facts = lines.SideFacts(
        template="", template_origin="chat_template.jinja", template_is_default=False, window=256,
        stop_tokens=("<|im_end|>",), weights="float32", shares=True,
    )  # fmt: skip
    for text in sys.stdin.buffer:
        request = lines.decode_request(text)
        if isinstance(request, lines.Open):
            for number, _ in enumerate(request.sides):
                tell(lines.SideReady(side=number, facts=facts))
            tell(lines.Ready(device="a processor", seconds=1.0))
        elif isinstance(request, lines.Ask):
            asked = request.turns[0][-1].content
            answers = next(answers for question, *answers in SPOKEN if question == asked)
            for number, (answer, tokens, seconds) in enumerate(answers):
                tell(
                    lines.Answered(
                        ask=request.ask, side=number, text=answer, tokens=tokens, prompt_tokens=0,
                        ended="end", seconds=seconds,
                    )
                )  # fmt: skip
            tell(lines.AllAnswered(ask=request.ask))


async def chat(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The demo model and an adapter side by side; a recorded conversation."""
    from engine.jobs.chat_lines import Sampling
    from scaler_tui import chat_process
    from scaler_tui.chat_sides import ChatAsked
    from scaler_tui.chat_state import ChatSettings, Phase
    from scaler_tui.screens.chat import ChatScreen

    chat_process.PROGRAM = (sys.executable, "-c", "from assets.screenshot_results import say_again; say_again()")  # type: ignore[assignment]
    os.environ["PYTHONPATH"] = str(SCORER.parents[2])
    folder = Path(os.environ["SCALER_WIZARD_HOME"]) / "ledger-demo"
    shutil.rmtree(folder, ignore_errors=True)
    plain_adapter(demo_model_dir(), folder, seed=0)
    screen = ChatScreen(ChatAsked("demo", adapters=(str(folder),)), ChatSettings(sampling=Sampling(temperature=0)))
    app.push_screen(screen)
    await until(pilot, lambda: screen.state is not None and screen.state.phase is Phase.READY, seconds=60)
    for turn, (question, *_) in enumerate(SPOKEN, start=1):
        screen.field.put(question)
        await pilot.press("enter")
        await until(
            pilot,
            lambda n=turn: screen.state.phase is Phase.READY and len(screen.state.sides[0].answers) == n,
            seconds=60,
        )


SCENES = {
    "adapters": adapters,
    "export": export,
    "run-taught": taught,
    "card-results": card_results,
    "card-mix": card_mix,
    "chat": chat,
}
