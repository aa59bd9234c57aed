"""The check of an extended folder: frequencies against its certificate, the cache against recomputation."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from engine.context.certificate import CERTIFICATE_NAME, Certificate, FolderCheck, encode_certificate
from engine.context.method import Options
from engine.context.planner import plan_context
from engine.errors import EngineError
from engine.extension.folder import write_extended
from engine.models.config import read_json_object
from engine.resources import demo_dir
from engine.rotary.__main__ import main
from engine.rotary.check import check_extended, check_unloaded

pytestmark = pytest.mark.slow

SOURCE = demo_dir() / "model"
TARGET = 512
ONES = (1.0,) * 16
PLAIN = Options()
LONG = tuple(2.0 ** (pair / 8) for pair in range(16))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def extended(folder: Path, method: str, options: Options = PLAIN) -> Path:
    config = read_json_object(SOURCE / "config.json", code="x", what="a config")
    plan = plan_context(config, TARGET, method, options)
    write_extended(SOURCE, folder, plan)
    (folder / CERTIFICATE_NAME).write_bytes(encode_certificate(Certificate(source=str(SOURCE), plan=plan)))
    return folder


def with_beta_fast(folder: Path, value: float) -> None:
    config = json.loads((folder / "config.json").read_text())
    for settings in ("rope_parameters", "rope_scaling"):
        config[settings]["beta_fast"] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_static_folder_turns_as_planned_and_its_cache_survives_the_old_border(tmp_path: Path) -> None:
    for number, (method, options) in enumerate(
        [("yarn", PLAIN), ("ntk-critical", PLAIN), ("longrope2", Options(long_divisors=LONG))]
    ):
        found = check_extended(extended(tmp_path / str(number), method, options))
        assert (found.modules, found.boundary, found.generated) == (1, 256, 16)
        assert found.largest_error < 1e-6
        assert found.cache_equal
        assert found.reason == ""


def test_switching_factors_break_the_cache_at_the_border_and_it_is_said(tmp_path: Path) -> None:
    options = Options(long_divisors=LONG, short_divisors=ONES)
    found = check_extended(extended(tmp_path / "switching", "longrope2", options))
    assert found.cache_equal is False
    assert found.logit_difference > 0.1
    assert "Keys of the first 256 tokens were turned by the short factors" in found.reason


def test_a_config_edited_by_hand_is_caught(tmp_path: Path) -> None:
    folder = extended(tmp_path / "edited", "yarn")
    with_beta_fast(folder, 8.0)
    with pytest.raises(EngineError) as caught:
        check_extended(folder)
    assert caught.value.code == "context.frequencies"


def test_frequencies_are_compared_without_the_weights_where_they_do_not_fit(tmp_path: Path) -> None:
    switching = Options(long_divisors=LONG, short_divisors=ONES)
    for number, (method, options) in enumerate([("yarn", PLAIN), ("llama3", PLAIN), ("longrope2", switching)]):
        folder = extended(tmp_path / str(number), method, options)
        loaded = check_extended(folder)
        (folder / "model.safetensors").unlink()
        out = tmp_path / f"{number}.json"
        assert main(["check", "--unloaded", "--threads", "1", "--model", str(folder), "--out", str(out)]) == 0
        found = msgspec.json.decode(out.read_bytes(), type=FolderCheck)
        assert (found.modules, found.largest_error) == (loaded.modules, loaded.largest_error)
        assert found.cache_equal is None
        assert "without the weights" in found.reason


def test_a_config_edited_by_hand_is_caught_without_the_weights_too(tmp_path: Path) -> None:
    folder = extended(tmp_path / "edited", "yarn")
    with_beta_fast(folder, 8.0)
    with pytest.raises(EngineError) as caught:
        check_unloaded(folder)
    assert caught.value.code == "context.frequencies"


def test_the_command_writes_the_check_and_refuses_other_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = extended(tmp_path / "folder", "llama3"), tmp_path / "check.json"
    assert main(["check", "--threads", "1", "--model", str(folder), "--out", str(out)]) == 0
    assert msgspec.json.decode(out.read_bytes(), type=FolderCheck).cache_equal
    assert capsys.readouterr().out == ""
    assert main(["check", "--model", str(SOURCE), "--out", str(tmp_path / "none.json")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "extension.no_certificate"
    assert not (tmp_path / "none.json").exists()
