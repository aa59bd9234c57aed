"""Scores of mixes: what the loaded base computes under a mix, the process that answers wishes, a killed search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.adapters.folder import read_adapter
from engine.adapters.mix import MixRequest, mix_adapters
from engine.adapters.recipe import Recipe, Share
from engine.errors import EngineError
from engine.evaluation import mix_score
from engine.evaluation.loading import loaded
from engine.evaluation.mix_rows import chosen_rows, read_rows
from engine.evaluation.rows import score_rows
from engine.jobs.mix_lines import AskedMix, Dropped, Line, Refused, Scored, Scorer, Tried, decode_line
from engine.jobs.spec_mix import MixMethod, MixSection
from scaler_tui.mix_process import MixProcess
from tests.support.adapters import random_adapter
from tests.support.cli import cli, command, environment

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
    shares = tuple(Share(read_adapter(adapters[name]), weight) for name, weight in (("dora", -0.3), ("lora", 0.7)))
    recipe = Recipe(method, mix.density, mix.signs, mix.rank, 5)
    mix_adapters(MixRequest(shares, tmp_path / "mixed", recipe, tiny_model, test=False))
    scored = ready.score(AskedMix(id=1, weights=(0.7, 0.0, -0.3, 0.0, 0.0), mix=mix, seed=5))
    assert scored == pytest.approx(loss_with_peft(tiny_model, tmp_path / "mixed", ready.rows.search), abs=5e-5)


def test_a_stale_score_is_given_up(ready: mix_score.Ready) -> None:
    assert ready.score(AskedMix(id=1, weights=(1.0, 0, 0, 0, 0)), stale=lambda: True) is None


# ── the command line and its processes ────────────────────────────────────────────────────────────────────────────
def words(verb: str, adapters: dict[str, Path], data: Path, *more: str) -> list[str]:
    named = [str(adapters[name]) for name in ("lora", "dora")]
    return ["adapters", verb, *named, "--data", str(data), "--json", *more]


def test_the_process_answers_the_newest_wish_and_says_which_were_dropped(
    tiny_data: Path, adapters: dict[str, Path], ready: mix_score.Ready
) -> None:
    process = MixProcess(words("score", adapters, tiny_data / "heldout.jsonl", "--json-lines"))
    said: list[Line] = []
    for line in process.lines():
        said.append(line)
        if isinstance(line, Scorer):
            for number in (1, 2, 3):
                process.ask(AskedMix(id=number, weights=(number / 10, 0.5)))
        elif isinstance(line, Scored) and line.id == 3:
            linear = MixSection(method=MixMethod.LINEAR)
            process.ask(AskedMix(id=4, weights=(1.0, -1.0), mix=linear))
        elif isinstance(line, Refused):
            process.end()
    assert process.error is None
    assert isinstance(said[0], Scorer)
    assert said[0].adapters == ("lora", "dora")
    assert said[0].rows == len(ready.rows.search)
    answered = [line for line in said if isinstance(line, Scored)]
    dropped = [line.id for line in said if isinstance(line, Dropped)]
    assert sorted([*dropped, *(line.id for line in answered)]) == [1, 2, 3], "every wish gets one line"
    assert answered[-1].id == 3
    assert answered[-1].loss == pytest.approx(ready.score(AskedMix(id=0, weights=(0.3, 0, 0.5, 0, 0))), abs=2e-5)
    assert isinstance(said[-1], Refused), "a wish that cannot be is answered, and the process goes on"


def test_a_killed_sweep_measures_nothing_twice_and_finds_the_same(
    own_home: Path, tiny_data: Path, adapters: dict[str, Path]
) -> None:
    asked = words("sweep", adapters, tiny_data / "heldout.jsonl", "--tries", "9")
    process = subprocess.Popen(
        command(*asked, "--json-lines"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(5):
        assert isinstance(decode_line(process.stdout.readline()), Tried)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (log,) = own_home.rglob("sweeps/*.jsonl")
    kept = log.read_bytes().splitlines()
    assert len(kept) >= 5
    done = cli(*asked)
    assert done.code == 0, done.text
    lines = log.read_bytes().splitlines()
    cells = [json.loads(line)["cell"] for line in lines]
    assert lines[: len(kept)] == kept
    assert len(cells) == len(set(cells)), "nothing was measured twice"
    report = done.json
    losses = [json.loads(line)["value"] for line in lines if json.loads(line)["cell"].startswith("search")]
    assert report["tries"] == 9 == len(losses)
    assert report["best"]["loss"] == min(losses)
    assert report["check_rows"] > 0
    assert "were chosen for the" in report["verdict"]
    assert not list(own_home.rglob("sweeps/*.json")), "its report is what is printed"


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
