"""LayerNorm decoders grown on disk compute what they computed: every family and axis, loaded by plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import EngineError
from tests.support.layernorm_nets import LISTED, NET, NETS, Net, check_same_function, grown, saved

DOUBLE, SINGLE = 1e-9, 1e-5
QUICK = ("stablelm", "gpt_neox", "phi", "falcon-40b", "starcoder2", "cohere", "gpt2")
PAIRS = [
    pytest.param(net.name, growth, marks=() if net.model_type in LISTED else pytest.mark.exhaustive)
    for net in NETS
    for growth in net.growths
]
IN_DOUBLE = [pair for pair in PAIRS if not NET[str(pair.values[0])].no_double]
REFUSALS = [(net.name, axis) for net in NETS for axis in net.refused]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, torch.dtype], Path]:
    """Saved nets of this module, made when first asked for."""
    root = tmp_path_factory.mktemp("layernorm")

    class Made(dict[tuple[str, torch.dtype], Path]):
        def __missing__(self, key: tuple[str, torch.dtype]) -> Path:
            name, dtype = key
            self[key] = saved(NET[name], root / f"{name}-{str(dtype).removeprefix('torch.')}", dtype)
            return self[key]

    return Made()


def tolerance_of(net: Net, dtype: torch.dtype) -> float:
    return SINGLE if net.single or dtype is torch.float32 else DOUBLE


@pytest.mark.parametrize("name", QUICK)
def test_a_wider_deeper_net_computes_the_same(
    sources: dict[tuple[str, torch.dtype], Path], tmp_path: Path, name: str
) -> None:
    source = sources[name, torch.float64]
    out = grown(source, tmp_path / "grown", NET[name].growths["hybrid"])
    check_same_function(source, out, torch.float64, tolerance_of(NET[name], torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "growth"), IN_DOUBLE)
def test_every_growth_is_exact_in_double_precision(
    sources: dict[tuple[str, torch.dtype], Path], tmp_path: Path, name: str, growth: str
) -> None:
    source = sources[name, torch.float64]
    out = grown(source, tmp_path / "grown", NET[name].growths[growth])
    check_same_function(source, out, torch.float64, tolerance_of(NET[name], torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "growth"), PAIRS)
def test_every_growth_is_exact_in_single_precision(
    sources: dict[tuple[str, torch.dtype], Path], tmp_path: Path, name: str, growth: str
) -> None:
    source = sources[name, torch.float32]
    out = grown(source, tmp_path / "grown", NET[name].growths[growth])
    check_same_function(source, out, torch.float32, SINGLE)


@pytest.mark.parametrize(("name", "axis"), REFUSALS)
def test_what_a_family_cannot_do_is_refused_with_the_reason(
    sources: dict[tuple[str, torch.dtype], Path], tmp_path: Path, name: str, axis: str
) -> None:
    wish, words = NET[name].refused[axis]
    with pytest.raises(EngineError) as caught:
        grown(sources[name, torch.float32], tmp_path / "grown", wish)
    assert caught.value.code == "expansion.unsupported"
    assert words in caught.value.cause
    assert not (tmp_path / "grown").exists()
