"""Dead capacity and twins are found, by name, on models made to have them; what learns is not accused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from engine.expansion.certificate import Liveness, TensorEntry, read_certificate
from engine.expansion.checks import Wish
from engine.proof import skeleton
from engine.proof.census import Census
from engine.proof.liveness import check_streamed, check_whole
from engine.proof.opened import load_whole
from engine.proof.streamed import StreamedModel
from engine.proof.twins import twin_pairs
from tests.support.proof_models import USUAL, VOCABULARY, grown, saved

IDS = torch.randint(3, VOCABULARY, (1, 60), generator=torch.Generator().manual_seed(3))
PLENTY, HARDLY_ANY = 1 << 30, 1
OLD_FFN, NEW_FFN = 48, 64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    skeleton.quiet()


def checked(folder: Path, entries: dict[str, TensorEntry] | None = None) -> list[Liveness]:
    """In memory, streamed with room for all layers' gradients, and streamed with room for one's."""
    if entries is None:
        certificate = read_certificate(folder)
        assert certificate is not None
        entries = certificate.tensors
    found = [check_whole(load_whole(folder, torch.float32), IDS, entries)]
    for room in (PLENTY, HARDLY_ANY):
        with StreamedModel(folder, torch.float32) as stream:
            found.append(check_streamed(stream, IDS, entries, room))
    return found


def widened(folder: Path, fill: Callable[[Any], None]) -> dict[str, TensorEntry]:
    """A Llama whose last FFN units are new and filled by hand."""
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**USUAL | {"intermediate_size": NEW_FFN}))
    with torch.no_grad():
        for layer in model.model.layers:
            fill(layer.mlp)
    model.save_pretrained(folder)
    span = ((OLD_FFN, NEW_FFN),)
    entries = {}
    for name, value in model.state_dict().items():
        spans = {"gate_proj": (span, ()), "up_proj": (span, ()), "down_proj": ((), span)}
        new = next((entry for part, entry in spans.items() if part in name), ())
        entries[name] = TensorEntry(file="", shape=tuple(value.shape), dtype="F32", new_spans=new)
    return entries


def test_zeros_on_both_sides_are_dead(tmp_path: Path) -> None:
    def zero(mlp: Any) -> None:
        mlp.gate_proj.weight[OLD_FFN:] = 0
        mlp.up_proj.weight[OLD_FFN:] = 0
        mlp.down_proj.weight[:, OLD_FFN:] = 0

    for found in checked(tmp_path, widened(tmp_path, zero)):
        assert found.checked
        assert not found.alive
        names = {line.partition(":")[0] for line in found.dead}
        layer = next(iter(names)).split(".mlp")[0]
        assert {f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")} <= names
        assert "16 of 16 new" in found.dead[0]


def test_zeros_on_one_side_live(tmp_path: Path) -> None:
    for found in checked(tmp_path, widened(tmp_path, lambda mlp: mlp.down_proj.weight[:, OLD_FFN:].zero_())):
        assert found.alive, found
        assert found.dead == ()
        assert found.twins == ()
        assert found.new_tensors == 6


def test_equal_units_are_twins(tmp_path: Path) -> None:
    """Two new units with equal weights in and out learn the same for ever."""

    def copy(mlp: Any) -> None:
        mlp.down_proj.weight[:, OLD_FFN:] = 0
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[OLD_FFN + 1] = part.weight[OLD_FFN]

    for found in checked(tmp_path, widened(tmp_path, copy)):
        assert found.alive
        assert any("gate_proj" in line and f"{OLD_FFN} and {OLD_FFN + 1}" in line for line in found.twins)
        assert any("down_proj" in line for line in found.twins)


def test_copies_with_unequal_outputs_are_no_twins(tmp_path: Path) -> None:
    def copy(mlp: Any) -> None:
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[OLD_FFN:] = part.weight[: NEW_FFN - OLD_FFN]
        mlp.down_proj.weight[:, OLD_FFN:] = mlp.down_proj.weight[:, : NEW_FFN - OLD_FFN] * 0.4
        mlp.down_proj.weight[:, : NEW_FFN - OLD_FFN] *= 0.6

    for found in checked(tmp_path, widened(tmp_path, copy)):
        assert found.alive
        assert found.twins == ()


def test_tiling_without_noise_is_reported_and_with_noise_is_not(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "source")
    for operator, twins in (("tile-plain", True), ("tile", False)):
        folder = grown(source, tmp_path / operator, Wish(hidden=64, operators=(f"hidden={operator}",)))
        for found in checked(folder):
            assert found.alive, found
            assert bool(found.twins) is twins
            if twins:
                assert any("down_proj" in line and "32 pairs on axis 0" in line for line in found.twins)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_identity_blocks_live(tmp_path: Path, name: str) -> None:
    folder = grown(saved(name, tmp_path / "source"), tmp_path / "grown", Wish(layers=3))
    for found in checked(folder):
        assert found.alive, found
        assert found.twins == ()
        assert found.new_tensors >= 9


# ── verdicts on gradients made by hand ────────────────────────────────────────────────────────────────────────────────
EXPERT = "model.layers.0.mlp.experts.{}.up_proj.weight"


def entry(*shape: int, new: bool = False, spans: Any = ()) -> TensorEntry:
    return TensorEntry(file="", shape=shape, dtype="F32", new=new, new_spans=spans)


def told(entries: dict[str, TensorEntry], *steps: dict[str, Tensor], values: dict[str, Tensor]) -> Liveness:
    census = Census(entries)
    for step, gradients in enumerate(steps):
        census.see(step, gradients, values)
    return census.verdict()


def test_an_expert_no_token_chose_is_reported_but_no_defect() -> None:
    entries = {EXPERT.format(i): entry(10, 12, new=True) for i in range(3)}
    values = {name: torch.randn(10, 12) for name in entries}
    gradients = {name: torch.randn(10, 12) for name in entries}
    gradients[EXPERT.format(2)] = torch.zeros(10, 12)
    found = told(entries, gradients, gradients, values=values)
    assert found.alive
    assert found.dead == (f"{EXPERT.format(2)}: its expert was never chosen on this text",)
    assert "is no defect" in found.reason


def test_experts_with_equal_weights_and_gradients_are_twins() -> None:
    entries = {EXPERT.format(i): entry(10, 12, new=i > 0) for i in range(3)}
    value, gradient = torch.randn(10, 12), torch.randn(10, 12)
    values = {name: value for name in entries}
    gradients = {EXPERT.format(0): gradient, EXPERT.format(1): gradient, EXPERT.format(2): 0.5 * gradient}
    found = told(entries, gradients, gradients, values=values)
    assert found.twins == (f"{EXPERT.format('*')}: 1 pairs of experts, such as 0 and 1",)


def test_a_few_dead_units_are_reported_and_many_are_a_defect() -> None:
    entries = {"up.weight": entry(100, 12, spans=(((0, 100),), ()))}
    values = {"up.weight": torch.randn(100, 12)}
    for lost, alive in ((3, True), (40, False)):
        gradient = torch.randn(100, 12)
        gradient[:lost] = 0
        found = told(entries, {"up.weight": gradient}, {"up.weight": gradient}, values=values)
        assert found.alive is alive
        assert found.dead == (f"up.weight: {lost} of 100 new on axis 0",)


def test_new_units_may_be_dead_as_often_as_old_ones() -> None:
    entries = {"up.weight": entry(100, 12, spans=(((50, 100),), ()))}
    values, gradient = {"up.weight": torch.randn(100, 12)}, torch.randn(100, 12)
    gradient[:5] = 0
    gradient[50:58] = 0
    found = told(entries, {"up.weight": gradient}, {"up.weight": gradient}, values=values)
    assert found.alive
    assert found.dead == ("up.weight: 8 of 50 new on axis 0",)


def test_a_routers_row_of_an_expert_never_chosen_is_no_defect() -> None:
    name = "model.layers.0.mlp.gate.weight"
    entries, gradient = {name: entry(4, 12, new=True)}, torch.randn(4, 12)
    gradient[1] = 0
    found = told(entries, {name: gradient}, {name: gradient}, values={name: torch.randn(4, 12)})
    assert found.alive
    assert found.dead == (f"{name}: 1 of 4 new experts never chosen on this text",)


def test_a_balance_that_no_layer_learns_by_gradients_is_left_out() -> None:
    names = [f"model.layers.{layer}.mlp.expert_bias" for layer in range(2)]
    entries = {names[0]: entry(4), names[1]: entry(4, new=True)}
    nothing = {name: torch.zeros(4) for name in names}
    assert told(entries, nothing, nothing, values=nothing).alive
    something = {names[0]: torch.ones(4), names[1]: torch.zeros(4)}
    assert not told(entries, something, something, values=nothing).alive


def test_a_gradient_at_the_third_step_is_late_and_not_dead() -> None:
    entries = {"up.weight": entry(10, 12, new=True)}
    values, nothing = {"up.weight": torch.randn(10, 12)}, {"up.weight": torch.zeros(10, 12)}
    found = told(entries, nothing, nothing, {"up.weight": torch.randn(10, 12)}, values=values)
    assert found.alive
    assert found.dead == ()
    assert "at step 2" in found.reason


def test_a_new_tensor_without_a_parameter_is_no_proof_of_life() -> None:
    found = told({"lost.weight": entry(10, 12, new=True)}, {}, {}, values={})
    assert not found.alive
    assert "lost.weight" in found.reason


def test_twins_are_found_among_thousands_of_coordinates() -> None:
    draw = torch.Generator().manual_seed(2)
    values, gradients = (torch.randn(3000, 40, generator=draw) for _ in range(2))
    new = torch.zeros(3000, dtype=torch.bool)
    new[2000:] = True
    for old, copy in ((17, 2500), (2400, 2999)):
        values[copy], gradients[copy] = values[old], gradients[old] * (1 + 1e-6)
    gradients[2100], values[2100] = gradients[3] * 1.01, values[3]  # as for copies with unequal outputs
    gradients[40], values[40] = gradients[41], values[41]  # both old: no one's fault
    assert twin_pairs(values, gradients, 0, new) == [(17, 2500), (2400, 2999)]
    assert twin_pairs(values.T, gradients.T, 1, new) == [(17, 2500), (2400, 2999)]
