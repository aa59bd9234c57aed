"""Screenshots of every screen from recorded journals: no live run, no clock, no network; a rerun gives the same files.

`python assets/make_screenshots.py [NAME ...]` writes assets/screenshots/NAME-SIZE-THEME.svg, and PNGs of the dark ones.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = Path("/tmp/scaler-wizard-screenshots")
OUT = ROOT / "assets" / "screenshots"
NOW = 1_795_000_000.0
"""Every clock in the pictures shows this moment."""
sys.path.insert(0, str(ROOT))
os.environ.update(SCALER_WIZARD_HOME=str(HOME), HF_HUB_OFFLINE="1", TZ="UTC", TEXTUAL_ANIMATIONS="none")
for name in ("COLUMNS", "LINES", "NO_COLOR", "SSH_CONNECTION"):
    os.environ.pop(name, None)

import resvg_py  # noqa: E402
from textual.pilot import Pilot  # noqa: E402

import scaler_tui.app as app_module  # noqa: E402
import scaler_tui.feeds.data_check as data_check  # noqa: E402
import scaler_tui.race_process as race_process  # noqa: E402
from assets import screenshot_results  # noqa: E402
from engine.errors import EngineError  # noqa: E402
from engine.hardware.simulate import simulate  # noqa: E402
from engine.jobs.card_io import write_card  # noqa: E402
from engine.jobs.spec import StageSection  # noqa: E402
from scaler_tui.app import ScalerApp, Start  # noqa: E402
from scaler_tui.feeds.startup import StartupNews  # noqa: E402
from scaler_tui.terminal import RenderPolicy  # noqa: E402
from scaler_tui.text_plan import Checked  # noqa: E402
from tests.support.context_runs import RACE, SEARCH, context_card  # noqa: E402
from tests.support.continuation_runs import Continuation, continuation_card, write_continuation  # noqa: E402
from tests.support.golden_runs import Golden, golden_card, write_golden  # noqa: E402
from tests.support.growth_runs import GrowthRun, grown_folder, write_growth_run  # noqa: E402
from tests.support.screen_host import until, visible  # noqa: E402
from tests.support.wizard_app import WORKSTATION  # noqa: E402
from tests.unit.test_text_plan import report_of  # noqa: E402

SIZES = ((80, 24), (120, 40))
THEMES = ("dark", "light")
LARGE_PNG = ("question", "matrix", "run-running", "card", "race", "schedule", "adapters")
"""Screens whose large picture is kept as PNG too; all of them would be megabytes."""
_PRINTS = "import sys; sys.stdout.write(open(sys.argv[1]).read())"
"""Stands in for the measuring process: prints a recording."""
Scene = Callable[[ScalerApp, Pilot[Any]], Awaitable[None]]
_FONTS = re.compile(r"@font-face\s*{[^}]*}", re.DOTALL)


async def shows(app: ScalerApp, pilot: Pilot[Any], text: str) -> None:
    """Wait until `text` is on the screen."""
    await until(pilot, lambda: text in visible(app), seconds=60)


async def questions(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The first question with its matrix."""
    app.open_wizard(fresh=True)
    await until(pilot, lambda: app.wizard.matrix is not None)
    await shows(app, pilot, "Approach")


async def welcome(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await shows(app, pilot, "none yet")


async def hardware(app: ScalerApp, pilot: Pilot[Any]) -> None:
    app.open_hardware()
    await shows(app, pilot, "RTX 3060 12GB")


async def question(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await questions(app, pilot)
    await pilot.press("1", "down", "down", "down")
    await shows(app, pilot, "What is the true goal?")


async def matrix(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """A plan for another card: SIM, an 8B model."""
    app.wizard.plan_for_card("RTX 4090")
    await questions(app, pilot)
    await pilot.press("5")
    await until(pilot, lambda: app.wizard.architecture is not None and app.wizard.architecture.parameters > 7e9)
    await pilot.press("m")
    await shows(app, pilot, "Memory")


async def explain(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await matrix(app, pilot)
    await pilot.press("e")
    await shows(app, pilot, "weights")


async def data(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await questions(app, pilot)
    app.open_data()
    await shows(app, pilot, "SHA-256")


async def review(app: ScalerApp, pilot: Pilot[Any]) -> None:
    app.open_demo_review()
    await until(pilot, lambda: app.wizard.data_is_checked, seconds=60)
    await shows(app, pilot, "rows kept")


def run_scene(golden: Golden, text: str) -> Scene:
    """The run screen of a recorded journal."""

    async def scene(app: ScalerApp, pilot: Pilot[Any]) -> None:
        app.open_run(write_golden(golden))
        await shows(app, pilot, text)
        await shows(app, pilot, "Predicted")

    return scene


async def runs(app: ScalerApp, pilot: Pilot[Any]) -> None:
    for number, golden in enumerate(
        (
            Golden(outcome="finished", steps=120, name="ledger-demo"),
            Golden(outcome="paused", steps=70, name="support-tone", gpus=1, usd_per_hour=0.44),
            Golden(outcome="failed", name="too-hot"),
            Golden(name="invoice-fields", gpus=1, usd_per_hour=0.44),
        )
    ):
        secrets.token_hex = lambda _=None, n=number: f"7f3{n}"  # type: ignore[assignment,misc]
        write_golden(golden)
    app.open_runs()
    await shows(app, pilot, "too-hot")


async def card(app: ScalerApp, pilot: Pilot[Any]) -> None:
    from scaler_tui.screens.card import CardScreen

    run_dir = write_golden(Golden(outcome="finished", steps=120))
    write_card(run_dir, golden_card(run_dir))
    app.push_screen(CardScreen(run_dir))
    await shows(app, pilot, "2.9100")


async def growth(app: ScalerApp, pilot: Pilot[Any], card_name: str, model: str) -> None:
    """The plans of a partial expansion, for another card."""
    app.wizard.plan_for_card(card_name)
    await questions(app, pilot)
    app.wizard.answer(model)
    app.wizard.session.set_answer("goal", "research")
    app.read_model(model)
    await until(pilot, lambda: app.wizard.matrix is not None)
    app.open_matrix()
    app.choose_approach("partial-expansion")
    await shows(app, pilot, "Learns")


async def plans(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """A 3B to about twice its size on a large card."""
    await growth(app, pilot, "A100 80GB", "llama-3.2-3b")


async def growing(app: ScalerApp, pilot: Pilot[Any]) -> None:
    app.open_run(write_growth_run(GrowthRun()))
    await shows(app, pilot, "growing: writing")


async def proof(app: ScalerApp, pilot: Pilot[Any]) -> None:
    from scaler_tui.screens.proof import ProofScreen

    app.push_screen(ProofScreen(grown_folder(HOME / "demo-7M")))
    await shows(app, pilot, "The same function")


async def longer(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The longer window of the demo model: what each way of training takes, who reads the result."""
    await questions(app, pilot)
    app.wizard.session.set_answer("goal", "long-documents")
    app.choose_approach("context")
    await shows(app, pilot, "Who reads it")
    await pilot.press("down")
    await shows(app, pilot, "PoSE")


async def race(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """A recorded race, decided: the table and the winner's heat map."""
    race_process.PROGRAM = (sys.executable, "-c", _PRINTS, str(RACE))
    await longer(app, pilot)
    await pilot.press("m")
    await shows(app, pilot, "ntk-critical answers")


async def search(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """A recorded search of factors."""
    race_process.PROGRAM = (sys.executable, "-c", _PRINTS, str(SEARCH))
    await longer(app, pilot)
    await pilot.press("s")
    await shows(app, pilot, "40 evaluations")


async def lengths(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The card of a run that made the window longer, at its section about length."""
    from scaler_tui.screens.card import CardScreen

    run_dir = write_golden(Golden(outcome="finished", steps=120))
    write_card(run_dir, context_card())
    app.push_screen(CardScreen(run_dir))
    await shows(app, pilot, "By length")
    part = app.screen.query_one("#card-lengths")
    app.screen.query_one("#card").scroll_to_widget(part, animate=False, top=True)
    await shows(app, pilot, "needle, before")


async def continuing(app: ScalerApp, pilot: Pilot[Any], key: str, text: str) -> None:
    """A recorded run on large text: two processes, a growing model, a recovery a moment ago."""
    app.open_run(write_continuation(Continuation()))
    await shows(app, pilot, "Recovered")
    await pilot.press(key)
    await shows(app, pilot, text)


async def evaluation(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await continuing(app, pilot, "5", "c general")


async def retention(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await continuing(app, pilot, "6", "Arithmetic fell")


async def abilities(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """The card of such a run, at what became of the model's abilities."""
    from scaler_tui.screens.card import CardScreen

    run_dir = write_continuation(Continuation(outcome="finished", steps=240))
    write_card(run_dir, continuation_card(run_dir, held="demo_arithmetic lost 13 points, and 5 are allowed."))
    app.push_screen(CardScreen(run_dir))
    await until(pilot, lambda: "not promoted" in " ".join(visible(app).split()))


SOURCES = (("court-rulings", 0.6, 310_000_000), ("statutes", 0.3, 84_000_000), ("plain-english", 0.1, 2_100_000_000))
"""Name, weight, tokens."""


async def text(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """Large text for the demo model on another card, counted."""
    from scaler_tui.screens.text import TextScreen

    app.wizard.plan_for_card("RTX 4090")
    await questions(app, pilot)
    app.wizard.session.set_answer("data", "text")
    plan = app.wizard.text
    plan.forget_checks("demo")
    for place, (name, weight, tokens) in enumerate(SOURCES):
        plan.add(f"hub:registry/{name}")
        plan.change(place, weight=weight)
        plan.end_check(plan.sources[place], Checked(report_of(plan.sources[place], tokens)))
    plan.decide(tokens=30_000_000)
    app.wizard.count_text()
    app.push_screen(TextScreen("continue"))
    await shows(app, pilot, "plain-english")


async def schedule(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """Three stages of it: short sequences, a wider model, a deeper one."""
    await text(app, pilot)
    app.wizard.text.decide(
        stages=(
            StageSection(name="short", max_tokens=10_000_000, max_length=128),
            StageSection(name="wider", hidden=320, max_tokens=10_000_000),
            StageSection(
                name="deeper",
                layers=12,
                max_tokens=10_000_000,
                weights={"court-rulings": 0.3, "statutes": 0.5, "plain-english": 0.2},
                stop_plateau_evaluations=3,
            ),
        )
    )
    await pilot.press("enter")
    await shows(app, pilot, "deeper")
    await pilot.press("down", "down")


async def limits(app: ScalerApp, pilot: Pilot[Any]) -> None:
    """What may be lost, and what several cards would give."""
    await text(app, pilot)
    await pilot.press("l", "right", "down", "down", "3", "down", "down", "down", "down")
    await shows(app, pilot, "tokens/s")


async def helping(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await question(app, pilot)
    await pilot.press("question_mark")
    await shows(app, pilot, "Keys: ")


async def problem(app: ScalerApp, pilot: Pilot[Any]) -> None:
    await shows(app, pilot, "none yet")
    try:
        simulate("RTX 5099", WORKSTATION)
    except EngineError as error:
        app.show_error(error)
    await shows(app, pilot, "Next:")


SCENES: dict[str, Scene] = {
    "welcome": welcome,
    "hardware": hardware,
    "question": question,
    "matrix": matrix,
    "explain": explain,
    "data": data,
    "review": review,
    "run-running": run_scene(Golden(gpus=1, usd_per_hour=0.44), "running"),
    "run-paused": run_scene(Golden(outcome="paused", steps=70), "paused"),
    "run-failed": run_scene(Golden(outcome="failed"), "failed"),
    "run-finished": run_scene(Golden(outcome="finished", steps=120), "finished"),
    "runs": runs,
    "card": card,
    "plans": plans,
    "run-growing": growing,
    "proof": proof,
    "longer": longer,
    "race": race,
    "search": search,
    "lengths": lengths,
    "text": text,
    "schedule": schedule,
    "limits": limits,
    "run-evaluation": evaluation,
    "run-retention": retention,
    "card-abilities": abilities,
    "help": helping,
    "problem": problem,
    **screenshot_results.SCENES,
}


def fix_the_world() -> None:
    """One clock, one machine, one run id, no path of the machine this runs on."""
    really_check = data_check.run_check

    def check(key: data_check.DataKey) -> tuple[dict[str, Any] | None, EngineError | None]:
        report, error = really_check(key)
        if report is not None:
            report["train"]["path"] = report["train"]["path"].replace(str(ROOT), "~/scaler-wizard")
        return report, error

    data_check.run_check = check
    app_module.read_machine = lambda: StartupNews(machine=WORKSTATION)  # type: ignore[assignment]
    time.time = lambda: NOW


async def take(name: str, size: tuple[int, int], theme: str) -> None:
    """One picture."""
    shutil.rmtree(HOME, ignore_errors=True)
    secrets.token_hex = lambda _=None: "7f3a"  # type: ignore[assignment,misc]
    app = ScalerApp(RenderPolicy(), Start(demo=True, theme=f"scaler-{theme}"))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.wizard.detected is not None)
        await shows(app, pilot, "none yet")
        await SCENES[name](app, pilot)
        await pilot.pause(0.3)
        svg = _FONTS.sub("", app.export_screenshot(title="scaler-wizard")).replace("Fira Code", "DejaVu Sans Mono")
    target = OUT / f"{name}-{size[0]}x{size[1]}-{theme}"
    target.with_suffix(".svg").write_text("\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n")
    if theme == "dark" and (size == SIZES[0] or name in LARGE_PNG):
        target.with_suffix(".png").write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=1)))


def main() -> int:
    """Take the named pictures, or all."""
    wanted = sys.argv[1:] or list(SCENES)
    OUT.mkdir(parents=True, exist_ok=True)
    fix_the_world()
    for name in wanted:
        for size in SIZES:
            for theme in THEMES:
                asyncio.run(take(name, size, theme))
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
    shutil.rmtree(HOME, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
