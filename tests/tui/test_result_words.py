"""Teachers, mixes and exports on cards, run screens, reviews and in plain text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.jobs.card_html import render
from engine.jobs.card_io import write_card
from engine.jobs.result_words import agreement_words, change_words, error_words, mix_rows, score_words
from engine.jobs.spec import JobSpec, MixedAdapter, MixSection, OutputSection, Task
from engine.jobs.spec_distillation import DistillationSection, DistillLoss, Held, Tokenizers
from engine.jobs.spec_mix import MixMethod
from scaler_tui.results_text import sections
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.run import RunScreen
from scaler_tui.spec_results_text import result_lines
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.run_figures import detail_rows
from scaler_tui.widgets.spec_words import setting_lines
from tests.support.golden_results import (
    EXPORT,
    MIX,
    TEACHER,
    agreement,
    mix_card,
    result_card,
    taught_spec,
    write_phase,
    write_taught,
)
from tests.support.golden_runs import Golden, write_golden
from tests.support.screen_host import ScreenHost, until, visible
from tests.support.wizard_app import SIZES, press


def flat(app: Any) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def scrolled(app: Any, pilot: Any, text: str) -> str:
    """The screen once `text` was scrolled to."""
    for _ in range(12):
        if text in flat(app):
            break
        await press(pilot, "pagedown")
    return flat(app)


# ── the card ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size", SIZES)
async def test_a_card_shows_teacher_and_exports_at_every_size(size: tuple[int, int]) -> None:
    run_dir = write_golden(Golden(outcome="finished"))
    write_card(run_dir, result_card(run_dir))
    app = ScreenHost(CardScreen(run_dir), RenderPolicy(unicode=False))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, CardScreen) and app.screen.card is not None)
        seen = await scrolled(app, pilot, "310 tokens/s")
        assert "12,400 tokens written by the student in 40 s, 310 tokens/s" in seen
        seen = await scrolled(app, pilot, "llama-cli")
        assert "7.732 +3.1 %" in seen
        assert "Older programs do not know its sliding window" in seen
        assert all(len(line) <= size[0] for line in visible(app).splitlines())


async def test_a_mix_has_its_own_headline_and_says_how_exact_it_is() -> None:
    run_dir = write_golden(Golden(outcome="finished"))
    write_card(run_dir, mix_card(run_dir))
    app = ScreenHost(CardScreen(run_dir))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, CardScreen) and app.screen.card is not None)
        seen = flat(app)
        assert "2 adapters became one: held-out loss 1.2040, 22.9 % below the base's 1.5610." in seen
        assert "0.7 x facts, -0.35 x tone" in seen
        assert "3.1 % against the weighted sum; most in layers.0.self_attn.q_proj 4.1 %" in seen
        assert "40 sets of weights measured" in seen


def test_the_page_and_the_text_say_the_same_and_escape_what_came_from_outside() -> None:
    run_dir = write_golden(Golden(outcome="finished"))
    card = msgspec.structs.replace(
        result_card(run_dir), teacher=msgspec.structs.replace(TEACHER, name="<b>teacher</b>"), mix=MIX
    )
    page = render(card)
    assert "&lt;b&gt;teacher&lt;/b&gt;" in page
    assert "<b>teacher</b>" not in page
    text = "\n".join(line for heading, lines in sections(card) for line in (heading, *lines))
    for words in (error_words(MIX), agreement_words(EXPORT.files[1].agreement or agreement()), "llama-cli -m"):
        assert words in text
        assert words.replace("'", "&#x27;") in page
    assert "llama-cpp-python is not installed here." in page
    assert "llama-cpp-python is not installed here." in text


def test_a_card_of_neither_says_nothing_of_them() -> None:
    run_dir = write_golden(Golden(outcome="finished"))
    card = msgspec.structs.replace(result_card(run_dir), teacher=None, exports=())
    assert list(sections(card)) == []
    assert "Written for other programs" not in render(card)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_changes_that_are_rounding_are_called_so() -> None:
    assert change_words(agreement(0.0001)) == "unchanged"
    assert change_words(agreement(0.02)) == "+2 %"
    assert change_words(agreement(-0.01)) == "-1 %"
    exact = msgspec.structs.replace(MIX, relative_error=2e-8)
    assert error_words(exact).startswith("no more than rounding")
    assert "above the base's" in score_words(1.0, 1.2)
    assert score_words(None, 1.2) == "held-out loss 1.2000"
    assert "answers part at token 12" in agreement_words(agreement(same=0.9))
    counted = msgspec.structs.replace(agreement(0.0001), perplexity_tokens=1005)
    assert "; perplexity over 1,005 tokens; " in agreement_words(counted)
    assert "perplexity" not in agreement_words(agreement()), "older reports have no count"
    assert "does not stop by itself" in agreement_words(agreement(stops=False))
    assert ("method", "ties, density 0.5, rank 16") in mix_rows(MIX)
    cut = dict(mix_rows(msgspec.structs.replace(MIX, cut_error=0.38)))["cut"]
    assert cut.startswith("38 % of what ties gives is lost at rank 16")
    assert "cut" not in dict(mix_rows(MIX)), "older reports do not know it"


def test_a_review_names_teacher_loss_answers_and_destination() -> None:
    lines = dict(setting_lines(taught_spec()))
    assert lines["Teacher"] == "Qwen/Qwen3-1.7B; held where it fits"
    assert "forward KL" in lines["Lesson"]
    assert "temperature 2; 50% labels; top 64, the rest as one more outcome" in lines["Lesson"]
    assert lines["Answers"].startswith("25% of the steps learn on the student's own")
    assert lines["Export"].startswith("GGUF for llama.cpp and LM Studio, Ollama; merged, as q8_0, q4_k_m")
    whole = msgspec.structs.replace(taught_spec(), task=Task.FULL)
    assert "; as q8_0" in dict(setting_lines(whole))["Export"], "nothing is merged where every parameter learnt"
    own = JobSpec(distillation=DistillationSection(teacher="/h/runs/20261126-1a2b/output/model"))
    assert dict(result_lines(own))["Teacher"].startswith("run 20261126-1a2b;")
    itself = JobSpec(distillation=DistillationSection(teacher="self", loss=DistillLoss.JSD, beta=0.3))
    lines = dict(result_lines(itself))
    assert lines["Teacher"] == "the model as it is before this job, at no cost in memory"
    assert lines["Lesson"].startswith("Jensen-Shannon, beta 0.3")
    foreign = JobSpec(distillation=DistillationSection(teacher="x/y", held=Held.NF4, tokenizers=Tokenizers.ULD))
    lines = dict(result_lines(foreign))
    assert lines["Teacher"] == "x/y; held in memory, in 4 bits"
    assert lines["Lesson"].startswith("sorted probabilities (ULD)")


def test_a_mix_job_says_what_becomes_of_which_adapters() -> None:
    spec = JobSpec(
        task=Task.MIX,
        mix=MixSection(method=MixMethod.TIES, density=0.3, rank=8, sweep=40),
        adapters=(MixedAdapter(path="/a/runs/x", weight=0.7), MixedAdapter(path="b", name="tone", weight=-0.5)),
        output=OutputSection(merge=True),
    )
    lines = setting_lines(spec)
    assert lines[0] == ("Adapters", "0.7 x runs/x")
    assert lines[1] == ("", "-0.5 x tone")
    words = dict(lines)
    assert "density 0.3; signs by total; rank 8" in words["Method"]
    assert words["Sweep"].startswith("40 sets of weights")
    assert words["Saved"] == "an adapter; merged model too; nothing is trained"
    assert not any("batch" in text for _, text in lines)


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size", SIZES)
async def test_a_run_with_a_teacher_shows_parts_of_its_loss_and_its_own_answers(size: tuple[int, int]) -> None:
    app = ScreenHost(RunScreen(write_taught(Golden())))
    async with app.run_test(size=size) as pilot:
        screen = app.screen
        assert isinstance(screen, RunScreen)
        await until(pilot, lambda: "tokens/s" in flat(app))
        seen = flat(app)
        if size[0] >= 80:
            assert "teacher nf4" in seen
            assert "loss, labels" in seen
            assert "loss, teacher" in seen
            assert "own answers 310 tokens/s" in seen
        await press(pilot, "3")
        await until(pilot, lambda: "Sand from the lower Varn" in flat(app))
        assert "learned on at step 84" in flat(app)
        assert all(len(line) <= size[0] for line in visible(app).splitlines())
        snapshot = screen.snapshot
        assert snapshot is not None
        rows = dict(detail_rows(snapshot.spec, snapshot.state, "x"))
        assert rows["taught by"] == "qwen3-1.7b, 1.72B parameters; in memory, in 4 bits"
        assert rows["written"].startswith("6,510 tokens written by the student in 21 s")


@pytest.mark.parametrize(
    ("phase", "detail"), [("mixing", "layers.3"), ("caching logits", "of 1.2M tokens"), ("exporting", "q8_0")]
)
async def test_new_phases_say_what_they_are_at_and_how_far(phase: str, detail: str) -> None:
    app = ScreenHost(RunScreen(write_phase(phase, detail, 3, 12, taught_spec())))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: phase in flat(app))
        seen = flat(app)
        assert "3 of 12" in seen
        assert detail in seen
