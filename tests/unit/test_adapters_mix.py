"""Mixes of adapters against the sum of their updates as the papers define them, computed here once more in float64."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.adapters import identity
from engine.adapters.base import Base, read_base
from engine.adapters.changes import Change, load_change
from engine.adapters.folder import Adapted, AdapterFolder, read_adapter
from engine.adapters.identity import identity_report
from engine.adapters.merge import MergeRequest, merge
from engine.adapters.merge_plan import Weighed
from engine.adapters.mix import MixRequest, mix_adapters, needed_base
from engine.adapters.mix_write import AdapterFile
from engine.adapters.origin import write_origin
from engine.adapters.recipe import EXACT, Recipe, Share
from engine.adapters.tensors import read_float, read_rows
from engine.adapters.update import low_rank, merged_weight
from engine.errors import EngineError, ExitCode
from engine.jobs.mix_report import MixReport
from engine.jobs.spec_mix import MixMethod
from engine.models.headers import read_headers
from tests.support.adapter_files import (
    DOWN1,
    HIDDEN,
    Q0,
    Q1,
    VOCABULARY,
    factors,
    write_adapter,
    write_base,
    write_packed_base,
)

Weights = dict[str, Any]


def magnitudes(base: Weights, module: str, seed: int) -> Weights:
    norms = np.linalg.norm(base[f"{module}.weight"], axis=1)
    return {f"{module}.lora_magnitude_vector": norms * np.random.default_rng(seed).uniform(0.7, 1.3, len(norms))}


def several_kinds(folder: Path, base: Weights) -> dict[str, Path]:
    """Adapters of every kind for the modules of the test's base."""
    two = {**factors(Q0, 2, seed=1), **factors(DOWN1, 2, seed=2)}
    biases = {f"{Q0}.lora_B.bias": np.linspace(-1, 1, HIDDEN), f"{Q1}.lora_B.bias": np.linspace(1, 2, HIDDEN)}
    trained = {f"{Q0}.base_layer.bias": np.ones(HIDDEN), f"{Q1}.bias": np.full(HIDDEN, 2.0)}
    draws = np.random.default_rng(9)
    table = {
        "model.embed_tokens.lora_embedding_A": draws.standard_normal((3, VOCABULARY)) * 0.1,
        "model.embed_tokens.lora_embedding_B": draws.standard_normal((HIDDEN, 3)) * 0.1,
    }
    made: dict[str, tuple[Weights, dict[str, Any]]] = {
        "plain": (two, {}),
        "ranks": (
            {**factors(Q0, 5, seed=3), **factors(Q1, 1, seed=4)},
            {"rank_pattern": {Q0: 5, "1.self_attn.q_proj": 1}},
        ),
        "rslora": (factors(Q1, 3, seed=5), {"r": 3, "use_rslora": True, "alpha_pattern": {"q_proj": 7}}),
        "dora": ({**two, **magnitudes(base, Q0, 6), **magnitudes(base, DOWN1, 7)}, {"use_dora": True}),
        "pissa": (two, {"init_lora_weights": "pissa"}),
        "olora": (factors(Q0, 2, seed=8), {"init_lora_weights": "olora"}),
        "biases": ({**factors(Q0, 2, seed=9), **factors(Q1, 2, seed=10), **biases}, {"lora_bias": True}),
        "trained": ({**two, **trained}, {"bias": "all"}),
        "saved": ({**two, "lm_head.weight": base["lm_head.weight"] * 1.5 + 0.1}, {"modules_to_save": ["lm_head"]}),
        "norm": ({**two, "model.norm.weight": base["model.norm.weight"] + 0.3}, {"modules_to_save": ["norm"]}),
        "embedding": ({**two, **table}, {"rank_pattern": {"embed_tokens": 3}}),
        "tokens": (
            {**two, "model.embed_tokens.token_adapter.trainable_tokens_delta": draws.standard_normal((2, HIDDEN))},
            {"trainable_token_indices": {"embed_tokens": [5, 2]}},
        ),
    }
    return {
        name: write_adapter(folder / name, tensors, folder / "base", **config)
        for name, (tensors, config) in made.items()
    }


def changed_by(adapter: AdapterFolder, base: Weights) -> Weights:
    """Every tensor that the adapter changes, after it, in float64: the definitions, without any of the mixing."""
    found: Weights = {}
    for whole in adapter.whole:
        found[whole.name] = read_float(whole.tensor).astype(np.float64)
    for rows in adapter.rows:
        table = found.setdefault(rows.weight, base[rows.weight].astype(np.float64))
        table[list(rows.indices)] = read_float(rows.tensor)
    for one in adapter.adapted:
        weight = found.get(one.weight, base[one.weight].astype(np.float64))
        found[one.weight] = with_update(one, weight, adapter)
        if one.bias is not None:
            bias = f"{one.module}.bias"
            found[bias] = base.get(bias, 0) + one.scale * read_float(one.bias).astype(np.float64)
    return found


def with_update(one: Adapted, weight: Any, adapter: AdapterFolder) -> Any:
    a, b = (read_float(tensor).astype(np.float64) for tensor in (one.a, one.b))
    inner = weight.T if one.embedding else weight
    if adapter.config.init == "pissa" and not one.embedding:
        u, values, vt = np.linalg.svd(inner)
        inner = inner - (u[:, : one.rank] * values[: one.rank]) @ vt[: one.rank]
    if adapter.config.init == "olora" and not one.embedding:
        q, r = np.linalg.qr(inner)
        inner = inner - one.scale * q[:, : one.rank] @ r[: one.rank]
    inner = inner + one.scale * b @ a
    if one.magnitude is not None:
        inner = inner * (read_float(one.magnitude).astype(np.float64) / np.linalg.norm(inner, axis=1))[:, None]
    return inner.T if one.embedding else inner


def true_sum(shares: list[tuple[AdapterFolder, float]], base: Weights) -> Weights:
    total: Weights = {}
    for adapter, weight in shares:
        for name, values in changed_by(adapter, base).items():
            total[name] = total.get(name, 0) + weight * (values - base.get(name, 0))
    return total


def assert_same_updates(found: Weights, wanted: Weights, base: Weights, tolerance: float = 1e-5) -> None:
    norm = np.sqrt(sum(np.sum(np.square(update)) for update in wanted.values()))
    for name in {*found, *wanted}:
        got = found[name] - base.get(name, 0) if name in found else 0
        assert np.linalg.norm(got - wanted.get(name, 0)) <= tolerance * norm, name


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("kinds")
    base = write_base(folder / "base")
    return folder / "base", base, several_kinds(folder, base)


def mixed(
    kinds: tuple[Path, Weights, dict[str, Path]], out: Path, weights: dict[str, float], recipe: Recipe = EXACT
) -> tuple[MixReport, list[tuple[AdapterFolder, float]]]:
    adapters = [(read_adapter(kinds[2][name]), weight) for name, weight in weights.items()]
    shares = tuple(Share(adapter, weight) for adapter, weight in adapters)
    return mix_adapters(MixRequest(shares, out, recipe, kinds[0], test=False)), adapters


KINDS = (
    *("plain", "ranks", "rslora", "dora", "pissa", "olora"),
    *("biases", "trained", "saved", "norm", "embedding", "tokens"),
)
WEIGHTS = st.sampled_from([1.0, 0.5, -0.7, 1.3])


@pytest.mark.parametrize("name", KINDS)
def test_one_adapter_at_weight_one_gives_itself_back(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path, name: str
) -> None:
    base_folder, base, folders = kinds
    report = identity_report(Share(read_adapter(folders[name])), read_base(base_folder))
    assert report.passed
    assert report.relative_error <= 1e-5
    mixed(kinds, tmp_path / "out", {name: 1.0})
    wanted = true_sum([(read_adapter(folders[name]), 1.0)], base)
    assert_same_updates(changed_by(read_adapter(tmp_path / "out"), base), wanted, base)


@given(st.dictionaries(st.sampled_from(KINDS[:-1]), WEIGHTS, min_size=2, max_size=4))
@settings(max_examples=20, deadline=None)
def test_an_exact_mix_is_the_weighted_sum_whatever_the_kinds(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory, weights: dict[str, float]
) -> None:
    out = tmp_path_factory.mktemp("mix") / "out"
    report, adapters = mixed(kinds, out, weights)
    found = changed_by(read_adapter(out), kinds[1])
    assert_same_updates(found, true_sum(adapters, kinds[1]), kinds[1])
    assert report.relative_error < 1e-5
    assert read_adapter(out).config.dora == ("dora" in weights)
    assert identity_report(Share(read_adapter(out)), read_base(kinds[0])).passed, "a mix can be mixed again"


def test_rows_of_embeddings_are_mixed_row_by_row(kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path) -> None:
    base_folder, base, folders = kinds
    other = write_adapter(
        tmp_path / "other",
        {**factors(Q0, 2, seed=20), "model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, HIDDEN))},
        base_folder, trainable_token_indices=[2, 9],
    )  # fmt: skip
    pair = [(read_adapter(folders["tokens"]), 0.5), (read_adapter(other), -2.0)]
    request = MixRequest(tuple(Share(*one) for one in pair), tmp_path / "out", base=base_folder)
    mix_adapters(request)
    result = read_adapter(tmp_path / "out")
    assert result.rows[0].indices == (2, 5, 9)
    assert_same_updates(changed_by(result, base), true_sum(pair, base), base)
    with_table = [*pair, (read_adapter(folders["embedding"]), 1.0)]
    mix_adapters(MixRequest(tuple(Share(*one) for one in with_table), tmp_path / "all", base=base_folder))
    found = read_adapter(tmp_path / "all")
    assert not found.rows
    assert "model.embed_tokens.weight" in [whole.name for whole in found.whole]
    assert_same_updates(changed_by(found, base), true_sum(with_table, base), base)


def test_a_rank_cuts_the_sum_as_well_as_any_and_says_how_far_it_is(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path
) -> None:
    recipe = Recipe(MixMethod.SVD, rank=3)
    report, adapters = mixed(kinds, tmp_path / "out", {"plain": 1.0, "ranks": -0.5, "dora": 1.0}, recipe)
    base, wanted = kinds[1], true_sum(adapters, kinds[1])
    found = changed_by(read_adapter(tmp_path / "out"), base)
    for layer in report.layers:
        name = f"{layer.module}.weight"
        values = np.linalg.svd(wanted[name], compute_uv=False)
        best = float(np.sqrt(np.sum(values[3:] ** 2) / np.sum(values**2)))
        error = np.linalg.norm(found[name] - base[name] - wanted[name]) / np.linalg.norm(wanted[name])
        assert error == pytest.approx(best, abs=1e-5)
        assert layer.relative_error == pytest.approx(best, abs=1e-5)
        assert layer.update_norm == pytest.approx(float(np.linalg.norm(wanted[name])), rel=1e-4)
        assert layer.rank <= 3
    assert not read_adapter(tmp_path / "out").config.dora


@pytest.mark.parametrize("method", [MixMethod.TIES, MixMethod.DARE, MixMethod.MAGNITUDE, MixMethod.DARE_TIES])
def test_other_methods_give_the_same_as_an_adapter_of_full_rank_and_as_a_model(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path, method: MixMethod
) -> None:
    recipe = Recipe(method, density=0.4, rank=HIDDEN)
    weights = {"plain": 1.0, "rslora": 0.5, "dora": -1.0, "saved": 1.0, "trained": 0.5, "embedding": 1.0}
    report, adapters = mixed(kinds, tmp_path / "out", weights, recipe)
    merge(
        MergeRequest(
            kinds[0], tuple(Weighed(*one) for one in adapters), tmp_path / "model", mixing=Recipe(method, density=0.4)
        )
    )
    base = kinds[1]
    model = {t.name: read_float(t) for t in read_headers(tmp_path / "model").tensors}
    found = changed_by(read_adapter(tmp_path / "out"), base)
    assert report.relative_error > 0.05
    for name, weight in base.items():
        np.testing.assert_allclose(found.get(name, weight), model[name], atol=2e-5, err_msg=name)


def test_what_a_rank_cuts_off_is_told_apart_from_what_the_method_changes(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path
) -> None:
    weights = {"plain": 0.7, "ranks": 0.5, "rslora": 0.5}
    reports: dict[int, MixReport] = {}
    cut: list[float] = []
    for rank in (2, 5, HIDDEN):
        recipe = Recipe(MixMethod.TIES, density=0.5, rank=rank)
        reports[rank], _ = mixed(kinds, tmp_path / str(rank), weights, recipe)
    base, whole = kinds[1], changed_by(read_adapter(tmp_path / str(HIDDEN)), kinds[1])
    for rank, report in reports.items():
        found = changed_by(read_adapter(tmp_path / str(rank)), base)
        lost = sum(float(np.sum((found[name] - whole[name]) ** 2)) for name in whole)
        given = sum(float(np.sum((whole[name] - base[name]) ** 2)) for name in whole)
        cut.append(float(np.sqrt(lost / given)))
        assert report.cut_error == pytest.approx(cut[-1], abs=1e-5)
    assert cut[0] > cut[1] > 0.05
    assert cut[2] == 0
    assert reports[HIDDEN].relative_error > 0.05, "nothing is cut, and ties is another update than the sum"
    summed, _ = mixed(kinds, tmp_path / "sum", weights, Recipe(MixMethod.SVD, rank=2))
    assert summed.cut_error is None, "of a sum the error is the cut"


def test_equal_seeds_give_equal_files(kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((1, 1, 2)):
        recipe = Recipe(MixMethod.DARE, density=0.5, seed=seed)
        mixed(kinds, tmp_path / str(number), {"plain": 1.0, "ranks": 1.0}, recipe)
        contents.append((tmp_path / str(number) / "adapter_model.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_plain_adapters_need_no_base(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0))
    other = write_adapter(tmp_path / "b", {**factors(Q0, 3, seed=1), **factors(DOWN1, 3, seed=2)}, r=3)
    shares = (Share(read_adapter(one), 2.0), Share(read_adapter(other), 1.0))
    report = mix_adapters(MixRequest(shares, tmp_path / "out"))
    assert report.rank == 5
    assert report.identity_error is not None
    assert report.identity_error < 1e-7
    result = read_adapter(tmp_path / "out")
    assert {(a.module, a.rank, a.scale) for a in result.adapted} == {(Q0, 5, 1.0), (DOWN1, 3, 1.0)}
    dora = write_adapter(
        tmp_path / "d", {**factors(Q0, 2, seed=0), f"{Q0}.lora_magnitude_vector": np.ones(HIDDEN)}, use_dora=True
    )
    with pytest.raises(EngineError, match="base") as caught:
        mix_adapters(MixRequest((Share(read_adapter(dora)),), tmp_path / "no"))
    assert caught.value.code == "adapter.no_base"
    assert low_rank(read_adapter(dora).adapted[0]) is None


def test_a_base_in_4_bits_is_done_without_where_it_can_be_and_refused_where_it_is_given(tmp_path: Path) -> None:
    base, packed = tmp_path / "base", tmp_path / "packed"
    write_base(base)
    write_packed_base(packed)
    one = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0), base_model_name_or_path=str(packed))
    write_origin(one, packed, name="packed")
    shares = (Share(read_adapter(one)),)
    assert mix_adapters(MixRequest(shares, tmp_path / "without")).rank == 2
    assert mix_adapters(MixRequest(shares, tmp_path / "unpacked", base=base)).rank == 2, "nothing tells against it"
    error = refused(MixRequest(shares, tmp_path / "no", base=packed), "adapter.packed_base", "packed")
    assert "--base" in error.next_step
    for named in (None, packed):
        with pytest.raises(EngineError) as caught:
            needed_base(shares, named)
        assert (caught.value.code, "leave" in caught.value.next_step) == ("adapter.packed_base", False)
    assert needed_base(shares, base).folder == base
    write_origin(one, base, name="base")
    write_base(tmp_path / "other", seed=1)
    refused(MixRequest(shares, tmp_path / "no", base=tmp_path / "other"), "adapter.other_base", "other weights")


def test_a_rank_above_what_a_matrix_can_have_is_cut_without_loss(tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / str(n), factors(Q0, 8, seed=n), r=8) for n in range(2)]
    shares = tuple(Share(read_adapter(path)) for path in paths)
    report = mix_adapters(MixRequest(shares, tmp_path / "out"))
    result = read_adapter(tmp_path / "out").adapted[0]
    assert result.rank == HIDDEN
    assert report.relative_error < 1e-6
    zero = np.zeros(result.stored_shape, np.float32)
    wanted = sum(merged_weight(share.adapter.adapted[0], zero) for share in shares)
    np.testing.assert_allclose(merged_weight(result, zero), wanted, atol=1e-6)


# ── refusals and files ───────────────────────────────────────────────────────────────────────────────────────────
def refused(request: MixRequest, code: str, word: str) -> EngineError:
    with pytest.raises(EngineError, match=word) as caught:
        mix_adapters(request)
    assert caught.value.code == code
    assert caught.value.next_step
    return caught.value


def test_adapters_of_different_bases_are_refused(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0), base_model_name_or_path="x/one")
    other = write_adapter(tmp_path / "b", factors(Q0, 2, seed=1), base_model_name_or_path="x/two")
    pair = (Share(read_adapter(one)), Share(read_adapter(other)))
    refused(MixRequest(pair, tmp_path / "out"), "adapter.other_base", "name different bases")
    write_base(tmp_path / "base")
    mix_adapters(MixRequest(pair, tmp_path / "out", base=tmp_path / "base"))
    wide = {f"{Q0}.lora_A.weight": np.zeros((2, 9)), f"{Q0}.lora_B.weight": np.zeros((9, 2))}
    third = write_adapter(tmp_path / "c", wide, base_model_name_or_path="x/one")
    trio = (pair[0], Share(read_adapter(third)))
    refused(MixRequest(trio, tmp_path / "no"), "adapter.other_base", "different bases")
    (tmp_path / "a" / "config.json").write_text("{}")
    refused(MixRequest(pair, tmp_path / "no", base=tmp_path / "base"), "adapter.other_base", "windows")


def test_vocabularies_that_grew_stay_and_cannot_be_added(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path
) -> None:
    base_folder, base, folders = kinds
    longer = np.concatenate((base["lm_head.weight"] + 0.5, np.full((2, HIDDEN), 7.0)))
    grown = write_adapter(
        tmp_path / "g", {**factors(Q0, 2, seed=0), "lm_head.weight": longer}, base_folder, modules_to_save=["lm_head"]
    )
    pair = (Share(read_adapter(grown), 0.5), Share(read_adapter(folders["plain"])))
    mix_adapters(MixRequest(pair, tmp_path / "out", base=base_folder))
    head = read_float(read_adapter(tmp_path / "out").whole[0].tensor)
    np.testing.assert_allclose(head[:-2], base["lm_head.weight"] + 0.25, atol=1e-6)
    np.testing.assert_array_equal(head[-2:], 7.0)
    clash = (pair[0], Share(read_adapter(folders["saved"])))
    refused(MixRequest(clash, tmp_path / "no", base=base_folder), "adapter.mix_form", "resized")


@pytest.mark.parametrize("first", ["grown", "plain"])
def test_the_tokenizer_of_a_mix_is_that_of_the_adapter_which_grew_the_vocabulary(first: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    longer = np.concatenate((base["lm_head.weight"], np.ones((2, HIDDEN))))
    grown = {**factors(Q0, 2, seed=0), "lm_head.weight": longer}
    folders = {
        "grown": write_adapter(tmp_path / "grown", grown, modules_to_save=["lm_head"]),
        "plain": write_adapter(tmp_path / "plain", factors(Q0, 2, seed=1)),
    }
    for name, folder in folders.items():
        (folder / "tokenizer.json").write_text(name)
    names = sorted(folders, key=lambda name: name != first)
    shares = tuple(Share(read_adapter(folders[name])) for name in names)
    mix_adapters(MixRequest(shares, tmp_path / "out", base=tmp_path / "base", test=False))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "grown"
    mix_adapters(MixRequest((shares[names.index("plain")],), tmp_path / "alone", base=tmp_path / "base", test=False))
    assert (tmp_path / "alone" / "tokenizer.json").read_text() == "plain"


def test_a_vocabulary_that_shrank_is_refused_and_no_write_leaves_its_tensor(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path
) -> None:
    base_folder, base, _ = kinds
    shorter = {**factors(Q0, 2, seed=0), "lm_head.weight": base["lm_head.weight"][:-2] + 0.5}
    path = write_adapter(tmp_path / "s", shorter, base_folder, modules_to_save=["lm_head"])
    share = Share(read_adapter(path), 0.5)
    refused(MixRequest((share,), tmp_path / "no", base=base_folder), "adapter.mix_form", "14 rows")
    copied = load_change(
        Change(whole=share.adapter.whole[0].tensor), read_base(base_folder).find("lm_head.weight"), None
    )
    assert copied.shape == (VOCABULARY - 2, HIDDEN)
    with pytest.raises(IndexError):
        read_rows(share.adapter.whole[0].tensor, 0, VOCABULARY)
    with AdapterFile(tmp_path, {"a": (2, 3), "b": (4,)}) as file, pytest.raises(IndexError):
        file.put("a", np.zeros((1, 3)), 4)


def test_nothing_is_overwritten_without_force_and_nothing_but_adapters_with_it(tmp_path: Path) -> None:
    share = (Share(read_adapter(write_adapter(tmp_path / "a", factors(Q0, 2, seed=0)))),)
    mix_adapters(MixRequest(share, tmp_path / "out"))
    before = (tmp_path / "out" / "mix.json").read_bytes()
    refused(MixRequest(share, tmp_path / "out"), "adapter.out_exists", "exists")
    assert (tmp_path / "out" / "mix.json").read_bytes() == before
    mix_adapters(MixRequest((Share(share[0].adapter, 3.0),), tmp_path / "out", force=True))
    assert json.loads((tmp_path / "out" / "mix.json").read_bytes())["weights"] == [3.0]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine").write_text("")
    refused(MixRequest(share, tmp_path / "own", force=True), "adapter.out_exists", "exists")
    (tmp_path / "out" / "checkpoint-5").mkdir()
    (tmp_path / "out" / "checkpoint-5" / "optimizer.pt").write_text("")
    lost = refused(MixRequest(share, tmp_path / "out", force=True), "adapter.out_exists", "exists")
    assert "checkpoint-5/optimizer.pt" in lost.cause
    other = write_adapter(tmp_path / "own" / "b", factors(Q0, 2, seed=1))
    pair = (Share(read_adapter(other)), *share)
    refused(MixRequest(pair, tmp_path / "own", force=True), "adapter.out_inside_source", "lie in each other")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    refused(MixRequest(share, tmp_path / "link", force=True), "adapter.out_exists", "exists")
    (tmp_path / "link").unlink()
    refused(MixRequest(share, tmp_path / "a", force=True), "adapter.out_inside_source", "lie in each other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out", "own"], "no hidden folder stays"


def test_a_mix_never_replaces_its_base(tmp_path: Path) -> None:
    base = tmp_path / "models" / "base"
    write_base(base)
    share = (Share(read_adapter(write_adapter(tmp_path / "a", factors(Q0, 2, seed=0), base))),)
    for out in (base, base / "in", tmp_path / "models"):
        refused(MixRequest(share, out, base=base, force=True), "adapter.out_inside_source", "lie in each other")
    refused(MixRequest(share, base / "in"), "adapter.out_inside_source", "lie in each other")  # named by the adapter


def test_an_adapter_of_weight_zero_has_no_part_and_one_of_them_must_have(
    kinds: tuple[Path, Weights, dict[str, Path]], tmp_path: Path
) -> None:
    recipe = Recipe(MixMethod.DARE, density=0.5)
    with_it = {"norm": 0.0, "plain": 1.0, "ranks": 0.5}
    told, _ = mixed(kinds, tmp_path / "with", with_it, recipe)
    mixed(kinds, tmp_path / "without", {"plain": 1.0, "ranks": 0.5}, recipe)
    mixed(kinds, tmp_path / "turned", {"ranks": 0.5, "plain": 1.0}, recipe)
    contents = [read_weights(tmp_path / name) for name in ("with", "without", "turned")]
    assert contents[0].keys() == contents[1].keys()
    for name, values in contents[0].items():
        np.testing.assert_array_equal(values, contents[1][name])
    assert told.weights == (0.0, 1.0, 0.5)
    without, turned = (
        {one.module: merged_weight(one, np.zeros(one.stored_shape, np.float32)) for one in read_adapter(folder).adapted}
        for folder in (tmp_path / "without", tmp_path / "turned")
    )
    for name, values in without.items():
        np.testing.assert_allclose(values, turned[name], atol=1e-6)
    none = (Share(read_adapter(kinds[2]["plain"]), 0.0),)
    refused(MixRequest(none, tmp_path / "no", base=kinds[0]), "adapter.mix", "Every weight is 0")


def read_weights(folder: Path) -> Weights:
    return {tensor.name: read_float(tensor) for tensor in read_headers(folder / "adapter_model.safetensors").tensors}


def test_a_mix_whose_self_test_fails_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {**factors(Q0, 2, seed=0, size=10), **factors(DOWN1, 2, seed=1, size=1e-4)}
    share = (Share(read_adapter(write_adapter(tmp_path / "a", parts))),)
    put = AdapterFile.put

    def slightly_wrong(file: AdapterFile, name: str, values: Any, first: int = 0) -> None:
        put(file, name, values * 1.01 if DOWN1 in name else values, first)

    monkeypatch.setattr(AdapterFile, "put", slightly_wrong)
    report = identity_report(share[0], None)
    assert report.relative_error < 1e-8, "the total alone would not tell"
    error = refused(MixRequest(share, tmp_path / "out"), "adapter.self_test", "is not itself")
    assert DOWN1 in error.cause
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_self_test_is_written_where_the_mix_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []
    report = identity.identity_report

    def noted(share: Share, base: Base | None, beside: Path | None = None) -> identity.IdentityReport:
        assert beside is not None
        places.append(beside)
        return report(share, base, beside)

    monkeypatch.setattr(identity, "identity_report", noted)
    share = (Share(read_adapter(write_adapter(tmp_path / "a", factors(Q0, 2, seed=0)))),)
    mix_adapters(MixRequest(share, tmp_path / "out"))
    assert [place.parent for place in places] == [tmp_path / ".staging-out"], "the next attempt removes it after a kill"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["a", "out"]


def test_a_disk_that_fills_up_with_the_last_file_is_measured_when_ours_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = (Share(read_adapter(write_adapter(tmp_path / "a", factors(Q0, 2, seed=0)))),)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    seen: list[bool] = []
    usage = shutil.disk_usage

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def measured(path: Path) -> Any:
        seen.append((tmp_path / ".staging-out").exists())
        return usage(path)

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(shutil, "disk_usage", measured)
    refused(MixRequest(share, tmp_path / "out", test=False), "disk.full", "The adapter needs")
    assert seen == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


_CHILD = """
import resource, signal, sys, time
from pathlib import Path
from engine.adapters.folder import read_adapter
from engine.adapters.mix import MixRequest, mix_adapters
from engine.adapters.recipe import Share
from engine.errors import EngineError
source, out, limit = sys.argv[1:]
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
def halt(done, of, name):
    if done == 1 and not int(limit):
        print("half", flush=True)
        time.sleep(600)
try:
    mix_adapters(MixRequest((Share(read_adapter(Path(source))),), Path(out), test=False), halt)
except EngineError as error:
    print(error.code, int(error.exit_code))
"""


@pytest.fixture
def child(tmp_path: Path) -> Callable[[int], subprocess.Popen[str]]:
    parts = {**factors(Q0, 2, seed=0), **factors(Q1, 2, seed=1)}
    write_adapter(tmp_path / "a", parts)
    words = [sys.executable, "-c", _CHILD, str(tmp_path / "a"), str(tmp_path / "out")]
    return lambda limit: subprocess.Popen([*words, str(limit)], stdout=subprocess.PIPE, text=True)


def test_a_kill_leaves_nothing_under_the_name_and_a_repeat_succeeds(
    tmp_path: Path, child: Callable[[int], subprocess.Popen[str]]
) -> None:
    with child(0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert not (tmp_path / "out").exists()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    share = (Share(read_adapter(tmp_path / "a")),)
    mix_adapters(MixRequest(share, tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_a_disk_that_fills_up_ends_as_a_message(tmp_path: Path, child: Callable[[int], subprocess.Popen[str]]) -> None:
    with child(700) as process:
        told, _ = process.communicate()
    assert told.split() == ["disk.full", str(int(ExitCode.DOES_NOT_FIT))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
