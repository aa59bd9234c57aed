"""A streamed model is the model: the same logits, the same cache, the same gradients, one layer in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import EngineError
from engine.proof import skeleton, streamed
from engine.proof.generation import generate
from engine.proof.opened import load_whole, opened
from engine.proof.streamed import StreamedModel
from tests.support import layernorm_nets, rms_nets
from tests.support.proof_models import NETS, VOCABULARY, saved

IDS = torch.randint(3, VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    skeleton.quiet()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("nets")

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = saved(name, root / name)
            return self[name]

    return Made()


@pytest.mark.parametrize("name", sorted(NETS))
def test_streamed_logits_and_generation_are_the_models_own(folders: Mapping[str, Path], name: str) -> None:
    model = load_whole(folders[name], torch.float32)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
    with StreamedModel(folders[name], torch.float32) as stream:
        with torch.no_grad():
            found = stream.model(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        assert torch.equal(generate(stream.model, IDS, 6).ids, generate(model, IDS, 6).ids)


LISTED = (*layernorm_nets.LISTED, *rms_nets.LISTED)
ALL_NETS = [(layernorm_nets, net) for net in layernorm_nets.NETS] + [(rms_nets, net) for net in rms_nets.NETS.values()]
STREAMED = [
    pytest.param(module, net, id=net.name, marks=() if net.model_type in LISTED else pytest.mark.exhaustive)
    for module, net in ALL_NETS
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "net"), STREAMED)
def test_every_family_that_can_be_grown_can_be_streamed(tmp_path: Path, module: Any, net: Any) -> None:
    folder = module.saved(net, tmp_path / "net", torch.float32)
    model = load_whole(folder, torch.float32)
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
    with StreamedModel(folder, torch.float32) as stream:
        with torch.no_grad():
            found = stream.model(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)
        assert torch.equal(generate(stream.model, IDS, 4).ids, generate(model, IDS, 4).ids)
        seen: set[str] = set()
        with stream.gradients(lambda _layer, _values, gradients: seen.update(gradients)):
            loss(stream.model).backward()
    assert seen == {parameter for parameter, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["llama-tied", "gemma3", "mixtral", "gpt2"])
def test_streamed_gradients_are_the_models_own(folders: Mapping[str, Path], name: str) -> None:
    model = load_whole(folders[name], torch.float32).requires_grad_(True)
    loss(model).backward()
    expected = {parameter: value.grad for parameter, value in model.named_parameters()}
    found: dict[str, Tensor] = {}

    def collect(_layer: int, _values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        for parameter, gradient in gradients.items():
            assert gradient is not None
            whole = torch.zeros_like(expected[parameter])
            if gradient.shape == whole.shape:
                whole += gradient
            else:  # the rows of the embedding that the text uses
                whole[IDS.unique()] += gradient
            found[parameter] = found.get(parameter, torch.zeros_like(whole)) + whole

    with StreamedModel(folders[name], torch.float32) as stream, stream.gradients(collect):
        loss(stream.model).backward()
    assert set(found) == set(expected)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6)


def loss(model: Any) -> Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], IDS[0, 1:])


@pytest.mark.parametrize("name", ["llama-tied", "gemma3"])
def test_a_step_on_a_streamed_model_is_a_step_on_the_model(folders: Mapping[str, Path], name: str) -> None:
    """Of the rows that the text uses: the others of a tied head keep their weights."""
    model = load_whole(folders[name], torch.float32)
    draw = torch.Generator().manual_seed(5)
    used = IDS.unique()
    with StreamedModel(folders[name], torch.float32) as stream, torch.no_grad():
        stream.model(input_ids=IDS, use_cache=False)
        changes = {}
        for parameter, value in model.named_parameters():
            change = torch.randn(value.shape, generator=draw) * 0.05
            if parameter == stream.embedding_place:
                value[used] += change[used]
                changes[parameter] = change[used]
            else:
                value += change
                changes[parameter] = change
        stream.adjust(changes)
        found = stream.model(input_ids=IDS, use_cache=False).logits
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_only_one_layer_is_in_memory_and_the_head_comes_in_pieces(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "HEAD_BYTES_AT_ONCE", 1000)
    expected = load_whole(folders["llama"], torch.float32)(input_ids=IDS, use_cache=False).logits
    with StreamedModel(folders["llama"], torch.float32) as stream:
        held: list[int] = []

        def count(_done: int, _total: int) -> None:
            held.append(sum(parameter.device.type != "meta" for parameter in stream.layers.parameters()))

        stream.layer_done = count
        pieces: list[int] = []
        read = stream.tensors.rows

        def watch(name: str, begin: int, end: int) -> Tensor:
            if name == "lm_head.weight":
                pieces.append(end - begin)
            return read(name, begin, end)

        monkeypatch.setattr(stream.tensors, "rows", watch)
        found = stream.model(input_ids=IDS, use_cache=False).logits
        assert held == [len(stream.layer_names[0])] * len(stream.layers)
        assert all(parameter.device.type == "meta" for parameter in stream.layers.parameters())
        assert len(pieces) > 10
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_models_memory_is_free_when_its_block_ends(folders: Mapping[str, Path]) -> None:
    """One model at a time: the source is gone before the grown one is loaded, though the caller still has its name."""
    for is_streamed in (False, True):
        with opened(folders["llama"], torch.float32, is_streamed, lambda _done, _total: None) as model:
            kept = weakref.ref(next(p for p in model.model.parameters() if p.device.type != "meta"))
            assert kept() is not None
        assert kept() is None
        assert all(parameter.device.type == "meta" for parameter in model.model.parameters())


def test_generation_ends_when_its_time_is_over(folders: Mapping[str, Path]) -> None:
    model = load_whole(folders["llama"], torch.float32)
    whole = generate(model, IDS, 5)
    cut = generate(model, IDS, 5, seconds=0.0)
    assert cut.ids.shape == (1, 1)
    assert torch.equal(cut.ids, whole.ids[:, :1])


def test_products_in_bfloat16_are_those_of_torch_up_to_one_rounding() -> None:
    draw = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(size, generator=draw).bfloat16() for size in ((5, 64), (7, 64)))
    plain = torch.nn.functional.linear(x, weight).float()
    with skeleton.wide_products():
        wide = torch.nn.functional.linear(x, weight)
    assert wide.dtype is torch.bfloat16
    assert ((wide.float() - plain).abs() <= plain.abs() * 2**-7 + 1e-6).all()


def test_weights_of_another_shape_are_refused_by_name(folders: Mapping[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folders["llama"] / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
    with (
        StreamedModel(tmp_path, torch.float32) as stream,
        torch.no_grad(),
        pytest.raises(EngineError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has the wrong shape"),
    ):
        stream.model(input_ids=IDS, use_cache=False)
