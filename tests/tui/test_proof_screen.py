"""The proof screen: one verdict, every figure with its meaning, noise beside noise; from a folder, a run and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.expansion.certificate import CERTIFICATE_NAME, Certificate, Drift, Liveness, encode_certificate
from engine.jobs.card import GrowthResult
from engine.jobs.card_io import write_card
from engine.jobs.events import ProofReport
from engine.jobs.state import RunPhase
from scaler_tui import proof_text
from scaler_tui.screens.card import CardScreen
from scaler_tui.screens.proof import ProofScreen
from scaler_tui.screens.run import RunScreen
from scaler_tui.terminal import RenderPolicy
from scaler_tui.widgets.progress_line import progress_line
from tests.support.golden_runs import Golden, golden_card, write_golden
from tests.support.growth_runs import GrowthRun, grown_folder, recorded, write_growth_run
from tests.support.screen_host import ScreenHost, until, visible
from tests.support.wizard_app import SIZES


def proof_of(certificate: Certificate, **changes: Any) -> Certificate:
    """The certificate with some findings replaced."""
    assert certificate.proof is not None
    return msgspec.structs.replace(certificate, proof=msgspec.structs.replace(certificate.proof, **changes))


def flat(app: ScreenHost) -> str:
    """The screen as one line."""
    return " ".join(visible(app).split())


async def shown_whole(app: ScreenHost, pilot: Any) -> str:
    """Everything on the screen, from top to bottom, as one line."""
    seen = flat(app)
    for _ in range(6):
        await pilot.press("pagedown")
        await pilot.pause()
        seen += " " + flat(app)
    return seen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unicode", [True, False])
async def test_verdict_figures_provenance_and_hashes_are_all_there(
    tmp_path: Path, size: tuple[int, int], unicode: bool
) -> None:
    folder = grown_folder(tmp_path / "grown")
    certificate = recorded()
    app = ScreenHost(ProofScreen(folder), RenderPolicy(unicode=unicode))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "The same function" in flat(app))
        text = await shown_whole(app, pilot)
        for expected in (
            "largest difference", "mean difference", "KL divergence", "same top token", "100 %", "generation",
            "identical", "64 tokens, greedy, with KV cache", "reload", "in bfloat16", "new parameters", "alive",
            "93 tensors", "grown, float32", "source, bfloat16", "(pad)", "(identity)", "new", "model.safetensors",
            certificate.files[0].sha256[:12], "seed",
        ):  # fmt: skip
            assert expected in text, expected
        assert all(len(line) <= size[0] for line in visible(app).splitlines())
        if not unicode:
            assert visible(app).isascii()


async def test_at_80x24_the_verdict_and_every_figure_fit_on_the_first_page(tmp_path: Path) -> None:
    app = ScreenHost(ProofScreen(grown_folder(tmp_path / "grown")))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "new parameters" in flat(app))
        assert "The same function" in visible(app)


def test_the_largest_difference_is_held_against_the_limit() -> None:
    certificate = recorded()
    assert certificate.proof is not None
    assert certificate.proof.float32 is not None
    worse = msgspec.structs.replace(certificate.proof.float32, max_rel_logit_diff=3e-4)
    broken = proof_of(certificate, float32=worse, passed=False, reason="The logits differ by 3.0e-04 of their range.")
    assert proof_text.verdict(broken).tone == "bad"
    assert "3.0e-04" in proof_text.verdict(broken).meaning
    assert proof_text.findings(broken)[0].tone == "bad"
    assert proof_text.findings(certificate)[0].tone == "good"


def test_rounding_to_the_stored_type_is_told_apart_from_what_growing_changed() -> None:
    certificate = recorded()
    assert certificate.proof is not None
    exact = certificate.proof.float32
    assert exact is not None
    rounded = msgspec.structs.replace(exact, max_rel_logit_diff=2e-3, max_abs_logit_diff=0.08)
    both = proof_of(certificate, float32=rounded, arithmetic=exact)
    found = {finding.name: finding for finding in proof_text.findings(both)}
    assert found["largest difference"].tone == "good"
    assert "rounding" in found["as stored"].meaning


def test_operators_that_change_the_function_are_judged_by_perplexity() -> None:
    drift = Drift(
        max_abs_logit_diff=4.0, mean_abs_logit_diff=0.5, max_rel_logit_diff=0.2, mean_kl=0.4, top1_agreement=0.7
    )
    changed = msgspec.structs.replace(
        proof_of(
            recorded(), exact_claimed=False, float32=drift, perplexity_before=6.0, perplexity_after=9.0,
            generation_identical=False,
        ),
        exact=False,
    )  # fmt: skip
    assert "none was promised" in proof_text.verdict(changed).name
    assert "6.00 before, 9.00 after" in proof_text.verdict(changed).meaning
    found = {finding.name: finding for finding in proof_text.findings(changed)}
    assert "1.50x" in found["perplexity"].meaning
    assert found["generation"].tone == "", "a difference that was announced is no failure"


def test_dead_parameters_and_twins_are_named() -> None:
    names = tuple(f"model.layers.{index}.mlp.up_proj.weight" for index in range(5))
    live = Liveness(checked=True, alive=False, new_tensors=9, dead=names, twins=("model.embed_tokens.weight",))
    found = proof_text.findings(proof_of(recorded(), liveness=live))[-1]
    assert found.tone == "bad"
    assert "and 2 more" in found.meaning
    assert "model.embed_tokens.weight" in found.meaning


def test_agreement_is_never_rounded_up_to_all() -> None:
    drift = Drift(
        max_abs_logit_diff=1e-5, mean_abs_logit_diff=1e-6, max_rel_logit_diff=1e-6, mean_kl=0.0, top1_agreement=0.99999
    )
    found = {finding.name: finding for finding in proof_text.findings(proof_of(recorded(), float32=drift))}
    assert found["same top token"].figure == "99.99 %"


def test_bars_share_one_scale() -> None:
    assert proof_text.noise_cells(0, 40) == 0
    assert proof_text.noise_cells(1, 40) == 40
    assert proof_text.noise_cells(1e-12, 40) == 1, "anything but nothing can be seen"
    cells = [proof_text.noise_cells(10.0**-power, 36) for power in range(9, -1, -1)]
    assert cells == sorted(cells)


async def test_an_unproven_model_says_so_and_shows_no_figures(tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    folder.mkdir()
    (folder / CERTIFICATE_NAME).write_bytes(encode_certificate(msgspec.structs.replace(recorded(), proof=None)))
    app = ScreenHost(ProofScreen(folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "Not proven" in flat(app))
        assert "largest difference" not in flat(app)


@pytest.mark.parametrize("content", [None, b"{not json"])
async def test_a_missing_or_damaged_certificate_is_said(tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "grown"
    folder.mkdir()
    if content is not None:
        (folder / CERTIFICATE_NAME).write_bytes(content)
    app = ScreenHost(ProofScreen(folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: CERTIFICATE_NAME in visible(app))
        assert ("cannot be read" in flat(app)) is (content is not None)


# ── from a run ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size", SIZES)
async def test_a_run_shows_how_far_growing_is_and_how_long_it_takes(size: tuple[int, int]) -> None:
    app = ScreenHost(RunScreen(write_growth_run(GrowthRun(stages=3))))
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: "growing: writing" in flat(app))
        text = flat(app)
        assert "6.00 MiB of 14.0 MiB" in text
        assert "42 %" in text
        assert "stage 2 of 3" in text
        assert "3.62M to 7.18M parameters" in text
        if size[0] > 60:
            assert "5 s left" in text, "4 s for 6 of 14 MiB"


async def test_steps_of_a_proof_are_not_called_bytes() -> None:
    app = ScreenHost(RunScreen(write_growth_run(GrowthRun(phase="proving", done_bytes=3, total_bytes=12))))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "growing: proving" in flat(app))
        assert "step 3 of 12" in flat(app)


@pytest.mark.parametrize("keeps", [True, False])
async def test_v_opens_the_proof_of_a_run_even_when_its_folder_is_gone(keeps: bool) -> None:
    run_dir = write_growth_run(GrowthRun(proven=True, outcome="finished", keeps_certificate=keeps))
    app = ScreenHost(RunScreen(run_dir))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "v Proof" in flat(app))
        assert "v shows the proof of the grown model" in flat(app)
        await pilot.press("v")
        await until(pilot, lambda: "The same function" in flat(app))
        assert ("model.safetensors" in await shown_whole(app, pilot)) is keeps
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))


async def test_a_run_without_growth_offers_no_proof() -> None:
    app = ScreenHost(RunScreen(write_golden(Golden())))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "step 84" in flat(app))
        assert "Proof" not in visible(app).splitlines()[-1]
        await pilot.press("v")
        assert isinstance(app.screen, RunScreen)


async def test_v_opens_the_proof_from_the_card() -> None:
    run_dir = write_golden(Golden(outcome="finished", steps=120))
    certificate = recorded()
    growth = GrowthResult(
        stage=1,
        operators=certificate.operators,
        parameters_before=certificate.parameters_before,
        parameters_after=certificate.parameters_after,
        exact=True,
        proof=msgspec.convert(msgspec.to_builtins(certificate.proof), ProofReport),
    )
    write_card(run_dir, msgspec.structs.replace(golden_card(run_dir), growths=(growth,)))
    app = ScreenHost(CardScreen(run_dir))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "v Proof" in flat(app))
        await pilot.press("v")
        await until(pilot, lambda: "The same function" in flat(app))


def test_the_line_of_growing_fits_any_width() -> None:
    from engine.jobs.fold import Fold
    from engine.jobs.journal import JournalTail

    fold = Fold()
    fold.apply_all(JournalTail(write_growth_run(GrowthRun())).stream())
    assert fold.state.state is RunPhase.GROWING
    for width in (40, 60, 80, 120):
        line = progress_line(fold.state, width, unicode=True)
        assert line.cell_length <= width
        assert "6.00 MiB of 14.0 MiB" in line.plain
