"""Scores of mixes: what the loaded base computes under a mix, the process that answers wishes, a killed search."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.adapters.folder import read_adapter
from engine.adapters.mix import MixRequest, mix_adapters
from engine.adapters.recipe import Recipe, Share
from engine.errors import EngineError
from engine.evaluation import mix_score
from engine.evaluation.loading import loaded
from engine.evaluation.mix_rows import chosen_rows, read_rows
from engine.evaluation.rows import score_rows
from engine.jobs.mix_lines import AskedMix, Dropped, Refused, Scored, Scorer, SweepReport, Tried, decode_line
from engine.jobs.spec_mix import MixMethod, MixSection
from tests.support.adapters import random_adapter

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mix-score")]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "saved": {"modules_to_save": ["lm_head"], "lora_bias": False},
}


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every kind."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: random_adapter(tiny_model, folder / name, seed=seed, **config)
        for seed, (name, config) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def ready(tiny_model: Path, tiny_data: Path, adapters: dict[str, Path]) -> Iterator[mix_score.Ready]:
    with mix_score.opened(tiny_model, list(adapters.items()), str(tiny_data / "heldout.jsonl")) as found:
        yield found


def loss_with_peft(base: Path, adapter: Path, rows: tuple) -> float:  # type: ignore[type-arg]
    """As peft computes it."""
    from dataclasses import replace

    from peft import PeftModel

    with loaded(base) as model:
        wrapped = PeftModel.from_pretrained(model.model, str(adapter)).eval()
        return score_rows(replace(model, model=wrapped), rows).loss


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_alone_is_what_peft_computes(
    kind: str, ready: mix_score.Ready, tiny_model: Path, adapters: dict[str, Path]
) -> None:
    weights = tuple(float(name == kind) for name in KINDS)
    expected = loss_with_peft(tiny_model, adapters[kind], ready.rows.search)
    base = ready.score(AskedMix(id=1, weights=(0.0,) * 5))
    assert ready.score(AskedMix(id=2, weights=weights)) == pytest.approx(expected, abs=2e-5)
    assert base is not None
    assert abs(expected - base) > 1e-3, "the adapter must change something for this to mean anything"
    assert ready.score(AskedMix(id=3, weights=(0.0,) * 5)) == base, "taking it off leaves nothing behind"


def test_a_sum_is_the_sum_of_the_updates_and_linear_divides_by_the_weights(ready: mix_score.Ready) -> None:
    weights = (0.5, -0.4, 0.3, 0.0, 0.2)
    total = sum(weights)
    shares = tuple(weight / total for weight in weights)
    as_sum = ready.score(AskedMix(id=1, weights=shares))
    linear = ready.score(AskedMix(id=2, weights=weights, mix=MixSection(method=MixMethod.LINEAR)))
    assert linear == pytest.approx(as_sum, abs=1e-6)
    assert linear != pytest.approx(ready.score(AskedMix(id=3, weights=weights)), abs=1e-4)
    with pytest.raises(EngineError) as refused:
        ready.score(AskedMix(id=4, weights=(1.0, -1.0, 0, 0, 0), mix=MixSection(method=MixMethod.LINEAR)))
    assert refused.value.code == "adapter.mix"


@pytest.mark.parametrize("method", [MixMethod.TIES, MixMethod.DARE, MixMethod.SVD, MixMethod.EXACT])
def test_a_score_is_that_of_the_adapter_which_is_written(
    method: MixMethod, ready: mix_score.Ready, tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    mix = MixSection(method=method, density=0.4, rank=3 if method is MixMethod.SVD else 0)
    shares = tuple(Share(read_adapter(adapters[name]), weight) for name, weight in (("lora", 0.7), ("dora", -0.3)))
    recipe = Recipe(method, mix.density, mix.signs, mix.rank, 5)
    mix_adapters(MixRequest(shares, tmp_path / "mixed", recipe, tiny_model, test=False))
    scored = ready.score(AskedMix(id=1, weights=(0.7, 0.0, -0.3, 0.0, 0.0), mix=mix, seed=5))
    assert scored == pytest.approx(loss_with_peft(tiny_model, tmp_path / "mixed", ready.rows.search), abs=5e-5)


def test_a_stale_score_is_given_up(ready: mix_score.Ready) -> None:
    assert ready.score(AskedMix(id=1, weights=(1.0, 0, 0, 0, 0)), stale=lambda: True) is None


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────
def command(base: Path, adapters: dict[str, Path], data: Path, *more: str) -> list[str]:
    named = [word for name in ("lora", "dora") for word in ("--adapter", f"{name}={adapters[name]}")]
    return [
        sys.executable, "-m", "engine.evaluation.mix_score", "--base", str(base), *named, "--data", str(data),
        "--threads", "1", *more,
    ]  # fmt: skip


def test_the_process_answers_the_newest_wish_and_says_which_were_dropped(
    tiny_model: Path, tiny_data: Path, adapters: dict[str, Path], ready: mix_score.Ready
) -> None:
    wishes = [AskedMix(id=number, weights=(number / 10, 0.5)) for number in (1, 2, 3)]
    nothing = AskedMix(id=4, weights=(1.0, -1.0), mix=MixSection(method=MixMethod.LINEAR))
    process = subprocess.Popen(
        command(tiny_model, adapters, tiny_data / "heldout.jsonl"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for wish in wishes:
            process.stdin.write(msgspec.json.encode(wish) + b"\n")
        process.stdin.flush()
        said = [decode_line(process.stdout.readline()) for _ in range(4)]
        assert isinstance(said[0], Scorer)
        assert said[0].adapters == ("lora", "dora")
        assert said[0].rows == len(ready.rows.search)
        assert said[1:3] == [Dropped(id=1), Dropped(id=2)]
        assert isinstance(said[3], Scored)
        assert said[3].id == 3
        assert said[3].loss == pytest.approx(ready.score(AskedMix(id=0, weights=(0.3, 0, 0.5, 0, 0))), abs=2e-5)
        process.stdin.write(msgspec.json.encode(nothing) + b"\n")
        process.stdin.flush()
        refused = decode_line(process.stdout.readline())
        assert isinstance(refused, Refused), "a wish that cannot be is answered, and the process goes on"
        process.stdin.close()
        assert process.wait(30) == 0, process.stderr.read() if process.stderr else ""
    finally:
        process.kill()


def test_a_killed_sweep_measures_nothing_twice_and_finds_the_same(
    tiny_model: Path, tiny_data: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "report.json"
    words = command(
        tiny_model, adapters, tiny_data / "heldout.jsonl", "--sweep", "14", "--log", str(log), "--out", str(out)
    )
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for _ in range(6):
        assert isinstance(decode_line(process.stdout.readline()), Tried)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    kept = log.read_bytes().splitlines()
    assert len(kept) >= 6
    done = subprocess.run(words, capture_output=True, check=True)
    report = msgspec.json.decode(out.read_bytes(), type=SweepReport)
    cells = [json.loads(line)["cell"] for line in log.read_bytes().splitlines()]
    assert log.read_bytes().splitlines()[: len(kept)] == kept
    assert len(cells) == len(set(cells)), "nothing was measured twice"
    tried = [decode_line(line) for line in done.stdout.splitlines()]
    assert report.tries == 14 == len(tried)
    assert report.best.loss == min(one.loss for one in tried if isinstance(one, Tried))
    assert report.best.loss <= min(one.loss for one in (report.base, *report.alone))
    assert report.check_rows > 0
    assert report.best.check_loss is not None


def test_rows_follow_from_their_text_and_no_row_is_in_both_halves(tiny_model: Path, tiny_data: Path) -> None:
    rows = read_rows(str(tiny_data / "train.jsonl"), tiny_model, 64)
    chosen = chosen_rows(rows, "x", 10_000)
    again = chosen_rows([*reversed(rows), *rows], "x", 10_000)
    assert chosen.digest == again.digest
    assert not {row.digest for row in chosen.search} & {row.digest for row in chosen.check}
    few = chosen_rows(rows, "x", 60)
    assert few.search == chosen.search[: len(few.search)]
    assert sum(len(row.input_ids) for row in few.search) < 60 + 64


def test_an_adapter_of_another_model_is_refused_with_the_module(
    tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    demo = Path(__file__).parents[2] / "assets" / "demo" / "model"
    with pytest.raises(EngineError) as refused, mix_score.opened(demo, [("lora", adapters["lora"])], "demo"):
        pass
    assert refused.value.code == "adapter.other_base"
