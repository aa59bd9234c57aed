"""`eval BASE --adapter A --adapter B`: one base in memory gives the figures of each adapter measured alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.chat.measure import measure_adapters
from engine.chat.sides import Sides
from engine.errors import EngineError
from engine.evaluation.folders import FoldersRequest, Model, Source, measure_folders
from engine.jobs.chat_lines import SideOrder
from engine.train.environment import Device
from tests.train.test_chat import adapters, order, packed_model

__all__ = ["adapters", "packed_model"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chat")]

CPU = Device("cpu", "a processor", torch.float32)


def silent(*_: object) -> None:
    """Nobody watches."""


def measured(sides: Sides, orders: tuple[SideOrder, ...], request: FoldersRequest):  # type: ignore[no-untyped-def]
    return measure_adapters(sides, orders, request, None, silent)


def test_figures_on_one_base_are_those_of_every_adapter_alone(
    tiny_model: Path, adapters: dict[str, Path], tiny_data: Path
) -> None:
    text = Source("words", str(tiny_data / "base.txt"))
    names = ("lora", "pissa")
    sides = Sides(CPU)
    orders = (order(tiny_model), *(order(adapters[name], tiny_model) for name in names))
    report = measured(sides, orders, FoldersRequest(Model(tiny_model, "base"), suites=(text,)))
    assert set(sides.sides) == {0}, "adapters leave when they are measured"
    for name, found in zip(names, report.adapters, strict=True):
        alone = measure_folders(
            FoldersRequest(
                Model(adapters[name], name, tiny_model), Model(tiny_model, "base"), suites=(text,)
            )
        )  # fmt: skip
        assert alone.parent is not None
        assert found.abilities.suites[0].bits_per_byte == alone.model.suites[0].bits_per_byte
        assert report.base.suites[0].bits_per_byte == alone.parent.suites[0].bits_per_byte
        assert found.retention[0].words == alone.retention[0].words
        assert found.abilities.suites[0].bits_per_byte != report.base.suites[0].bits_per_byte


def test_an_adapter_is_measured_on_a_base_that_is_stored_in_four_bits(
    packed_model: Path, adapters: dict[str, Path], tiny_data: Path
) -> None:
    request = FoldersRequest(Model(packed_model, "base"), suites=(Source("words", str(tiny_data / "base.txt")),))
    report = measured(Sides(CPU), (order(packed_model), order(adapters["lora"], packed_model)), request)
    base, tuned = report.base.suites[0], report.adapters[0].abilities.suites[0]
    assert tuned.bits_per_byte is not None
    assert tuned.bits_per_byte != base.bits_per_byte


def test_an_adapter_that_cannot_be_loaded_is_refused_before_anything_is_measured(
    tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_bytes((adapters["lora"] / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"pickled")
    sides = Sides(CPU)
    with pytest.raises(EngineError) as refused:
        measured(sides, (order(tiny_model), order(tmp_path, tiny_model)), FoldersRequest(Model(tiny_model, "base")))
    assert refused.value.code == "adapter.pickle"
    assert not sides.sides
