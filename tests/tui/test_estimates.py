"""Estimates in the wizard: a cell that opens, dry run and probe before a start, force, and what would be cheaper."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import scaler_tui.feeds.engine_thread as engine_thread
import scaler_tui.feeds.estimate_feed as estimate_feed
from engine.advise.explain import Line
from engine.advise.figures import refined_from_json, to_json
from engine.errors import EngineError
from engine.estimate.estimate import Estimate, Origin, Part
from engine.hardware.machine import Ram, Source
from engine.units import GIB
from scaler_tui.app import ScalerApp, Start
from scaler_tui.screens.matrix import MatrixScreen
from scaler_tui.screens.question import QuestionScreen
from scaler_tui.screens.review import ReviewScreen
from scaler_tui.screens.run import RunScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.breakdown import Cell, breakdown_content
from scaler_tui.widgets.fit_bar import FitBar
from scaler_tui.widgets.matrix_table import MatrixTable
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import until, visible
from tests.support.wizard_app import SIZES, WORKSTATION, known_machine, opened, press, to_questions

NAMES = ("weights", "adapter", "gradients", "optimizer", "activations", "logits and loss", "temporary buffers",
         "CUDA context", "allocator slack")  # fmt: skip


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known_machine(monkeypatch)
    monkeypatch.chdir(tmp_path)


def flat(app: Any) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


# ── a cell of the matrix ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size", SIZES)
async def test_a_cell_opens_with_its_bar_its_limiting_term_formula_and_source(size: tuple[int, int]) -> None:
    async with opened(size, Start(demo=True, gpu="RTX 4090")) as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m", "e")
        assert isinstance(app.screen, MatrixScreen)
        row = app.screen.row
        assert row is not None
        seen = ""
        for _ in range(10):
            seen += f" {flat(app)}"
            assert all(len(line) <= size[0] for line in visible(app).splitlines())
            await press(pilot, "pagedown")
        assert f"Memory of {row.title}" in seen
        assert f"Limited by: {row.limiting}"[:40] in seen
        for part in row.vram.breakdown:
            assert part.name in seen
            assert part.formula.split(" ")[0] in seen
        assert "Largest sequence" in seen
        assert app.screen.query_one(MatrixTable).opened == "memory"


async def test_left_and_right_walk_the_cells_and_left_of_the_first_one_closes_them() -> None:
    async with opened(start=Start(demo=True, gpu="RTX 4090")) as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m", "right")
        for expected in ("Memory of", "RAM of", "Time of", "Money of", "Disk of", "Verdict of", "Parameters of"):
            assert expected in visible(app)
            await press(pilot, "right")
        for _ in range(7):
            await press(pilot, "left")
        assert "Memory of" in visible(app)
        await press(pilot, "left")
        assert "Memory of" not in visible(app)
        assert isinstance(app.screen, MatrixScreen)
        await press(pilot, "left")
        assert isinstance(app.screen, QuestionScreen)


async def test_without_a_gpu_the_memory_cell_is_ram_and_there_is_no_second_one() -> None:
    async with opened() as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m", "e")
        assert app.screen.query_one(MatrixTable).opened == "memory"
        assert "Memory of" in visible(app)
        await press(pilot, "right")
        assert "Time of" in visible(app)


def nine_parts() -> Cell:
    """A cell whose nine parts all show."""
    parts = tuple(Part(name, (9 - index) * GIB, f"{index} B x N", "a source") for index, name in enumerate(NAMES))
    total = sum(part.amount for part in parts)
    figure = Estimate(total * 0.9, total, total * 1.2, "bytes", Origin.FORMULA, parts)
    lines = [Line("Limited by", "logits and loss: 128,256-word vocabulary x 2,048 tokens")]
    lines += [Line(part.name, f"{9 - index}.00 GiB", part.formula, part.source) for index, part in enumerate(parts)]
    return Cell("Memory of QLoRA", "other cells", tuple(lines), figure, 60 * GIB)


@pytest.mark.parametrize("width", [30, 56, 76, 116])
@pytest.mark.parametrize("unicode", [True, False])
def test_every_part_has_a_mark_of_its_own_without_colour(unicode: bool, width: int) -> None:
    plain = breakdown_content(nine_parts(), width, unicode=unicode).plain
    lines = plain.splitlines()
    assert all(len(line) <= width for line in lines)
    marks = {name: next(line[0] for line in lines if line[2:].startswith(name)) for name in NAMES}
    assert len(set(marks.values())) == len(NAMES)
    if width >= 56:  # the least part has a cell of its own
        assert set(marks.values()) <= set(lines[1]), "and the bar is drawn with them"
    assert "128,256-word vocabulary" in " ".join(plain.split())
    assert unicode or plain.isascii()


def test_a_cell_of_words_has_no_bar() -> None:
    cell = Cell(
        "Capacity of LoRA", "", (Line("Effective capacity", "5 to 15 % on your task, a rough judgement"),), None
    )
    assert breakdown_content(cell, 76, unicode=True).plain.splitlines()[1].strip().startswith("Effective capacity: 5")


async def test_in_ascii_without_colour_the_open_cell_is_all_ascii() -> None:
    policy = RenderPolicy(unicode=False, color=False)
    async with opened(start=Start(demo=True, gpu="RTX 4090"), policy=policy) as (app, pilot):
        await to_questions(app, pilot)
        await press(pilot, "m", "e")
        text = visible(app)
        assert text.isascii(), [line for line in text.splitlines() if not line.isascii()]
        assert "Limited by" in text


# ── before the start ──────────────────────────────────────────────────────────────────────────────────────────────
async def demo_review(app: ScalerApp, pilot: Any) -> ReviewScreen:
    await press(pilot, "1")
    screen = app.screen
    assert isinstance(screen, ReviewScreen)
    await until(pilot, lambda: screen.spec is not None and app.wizard.data_is_checked, seconds=60)
    return screen


def answering(screen: ReviewScreen, origin: Origin, factor: float) -> dict[str, Any]:
    """What `estimate --json` would print for the reviewed row if its memory were `factor` times as much."""
    row = screen.row
    assert row is not None
    assert row.appraisal is not None
    memory = replace(row.appraisal.memory.scaled(factor), origin=origin)
    return to_json(replace(row.appraisal, memory=memory))


def test_figures_read_back_from_json_are_the_figures_that_were_written() -> None:
    from engine.advise.amounts import load_of
    from engine.advise.answers import answers_of
    from engine.advise.appraisal import appraise
    from engine.advise.approaches import find_approach
    from engine.advise.fit import plan_of
    from engine.models.analyze import analyze

    plan = plan_of(find_approach("qlora"), analyze("demo"), WORKSTATION, answers_of())
    found = appraise(plan, WORKSTATION, load_of(plan, answers_of(), WORKSTATION))
    read = refined_from_json(to_json(found))
    assert read.memory.likely == round(found.memory.likely)
    assert [part.name for part in read.memory.breakdown] == [part.name for part in found.memory.breakdown]
    assert sum(part.amount for part in read.memory.breakdown) == read.memory.likely
    assert (read.verdict, read.reason) == (found.verdict, found.judgement.reason)
    assert "[formula]" in read.sentence


@pytest.mark.parametrize(("key", "tier", "origin"), [("y", "dry-run", Origin.DRY_RUN), ("p", "probe", Origin.PROBE)])
async def test_dry_run_and_probe_replace_the_figures_and_say_where_they_are_from(
    key: str, tier: str, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, asked = threading.Event(), []
    async with opened((120, 40)) as (app, pilot):
        screen = await demo_review(app, pilot)
        document = answering(screen, origin, 0.5)

        def twin(*words: str) -> dict[str, Any]:
            asked.append(words)
            go.wait(20)
            return document

        monkeypatch.setattr(estimate_feed, "ask_twin", twin)
        await press(pilot, key)
        assert "at work" in flat(app)
        await press(pilot, key, "y", "p")  # one at a time
        go.set()
        await until(pilot, lambda: f"[{origin.value}]" in flat(app))
        assert len(asked) == 1
        assert asked[0][:3] == ("estimate", f"--{tier}", "--json")
        bar = screen.query_one(FitBar)
        assert bar.estimate is not None
        assert bar.estimate.likely == document["memory"]["likely"]


async def test_what_goes_wrong_in_a_probe_stands_on_the_page_and_the_run_can_still_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def twin(*words: str) -> dict[str, Any]:
        raise EngineError("probe.busy", "The card is busy.", next_step="Wait for the other run.")

    monkeypatch.setattr(estimate_feed, "ask_twin", twin)
    async with opened((120, 40)) as (app, pilot):
        screen = await demo_review(app, pilot)
        await press(pilot, "p")
        await until(pilot, lambda: "The card is busy. Wait for the other run." in flat(app))
        assert screen.spec is not None
        assert screen.check_action("start", ()) is True


async def test_the_real_twin_is_asked_with_the_spec_as_a_file(tmp_path: Path) -> None:
    async with opened((120, 40)) as (app, pilot):
        screen = await demo_review(app, pilot)
        assert screen.spec is not None
        with pytest.raises(EngineError) as refused:
            estimate_feed.refine("no-such-tier", screen.spec, "", tmp_path)
        assert "--no-such-tier" in refused.value.what


async def test_a_simulated_machine_can_be_rehearsed_but_not_probed() -> None:
    async with opened(start=Start(demo=True, gpu="RTX 4090")) as (app, pilot):
        screen = await demo_review(app, pilot)
        assert screen.check_action("refine", ("dry-run",)) is True
        assert screen.check_action("refine", ("probe",)) is False
        assert app.wizard.card == "RTX 4090"


async def test_before_a_long_run_measuring_first_is_offered() -> None:
    async with opened((120, 40), start=Start(gpu="RTX 4090")) as (app, pilot):
        await review_of(app, pilot, "llama-3.1-8b", "qlora")
        assert "a long run: y rehearses its memory" in flat(app)
    async with opened((120, 40)) as (app, pilot):
        await demo_review(app, pilot)
        assert "a long run" not in flat(app)


async def review_of(app: ScalerApp, pilot: Any, model: str, approach: str, data: str = "demo") -> ReviewScreen:
    """The review of another model."""
    await to_questions(app, pilot)
    app.wizard.session.set_answer("model", model)
    app.read_model(model)
    app.wizard.session.set_answer("data", data)
    await until(pilot, lambda: app.wizard.architecture is not None and app.wizard.architecture.name == model)
    app.open_review(approach)
    await until(pilot, lambda: isinstance(app.screen, ReviewScreen))
    screen = app.screen
    assert isinstance(screen, ReviewScreen)
    await until(pilot, lambda: screen.spec is not None or screen.refusal is not None)
    return screen


@pytest.mark.parametrize("size", SIZES)
async def test_savings_and_room_stand_below_the_settings(size: tuple[int, int], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with rows.open("wb") as file:
        file.truncate(200_000_000)
    async with opened(size) as (app, pilot):
        screen = await review_of(app, pilot, "llama-3.1-8b", "qlora", data=str(rows))
        app.wizard.session.set_answer("hardware", "rented")
        app.wizard.session.set_answer("card", "H100 SXM 80GB")
        app.wizard.plan_for_answers()
        screen.replan()
        await pilot.pause()
        seen = ""
        for _ in range(8):
            seen += f" {flat(app)}"
            await press(pilot, "pagedown")
        assert "What would make it faster or cheaper" in seen
        assert "Largest that fits, each with the rest as it is: sequence" in seen


# ── force ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_force_is_a_choice_of_its_own_and_starts_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    known_machine(monkeypatch, replace(WORKSTATION, ram=Ram(4 * GIB, 3 * GIB, Source.SYSTEM)))
    started = []

    def start(*words: str) -> dict[str, str]:
        started.append(words)
        return {"directory": str(write_golden(Golden()))}

    monkeypatch.setattr(engine_thread, "ask_twin", start)
    async with opened((80, 24), start=Start()) as (app, pilot):
        screen = await review_of(app, pilot, "llama-3.1-8b", "lora")
        assert "does not fit" in flat(app)
        assert "3.00 GiB of 4.00 GiB RAM are free, 1.00 GiB in use by others" in flat(app)
        assert "F plans it all the same" in flat(app)
        await press(pilot, "enter")
        assert not started
        await press(pilot, "F")
        assert screen.spec is not None
        assert "Enter starts it all the same" in flat(app)
        assert not started
        await press(pilot, "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        assert started[0][:3] == ("start", "--json", "--force")


async def test_force_is_not_offered_where_nothing_was_refused() -> None:
    async with opened() as (app, pilot):
        screen = await demo_review(app, pilot)
        assert screen.check_action("force", ()) is False
