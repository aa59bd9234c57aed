"""What a start looks at of a teacher: refusals name the key and the way out, notes say what will be read and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.advise.dry_run import dry_run
from engine.advise.probe import probe
from engine.advise.taught import teacher_shape
from engine.errors import EngineError
from engine.hardware.detect import detect
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import load_spec
from engine.jobs.store import list_runs
from engine.models.analyze import analyze
from engine.models.resolve import resolve_model
from engine.resources import demo_model_dir
from engine.train.found_teacher import read_teacher
from scaler_tui.preflight import check
from tests.support.adapter_files import write_adapter

HEAD = 'task = "lora"\n[distillation]\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def teacher(tmp_path: Path) -> Callable[..., Path]:
    """The demo model under another name, its tokenizer changed."""

    def make(change: Callable[[dict[str, Any]], None] = lambda _content: None) -> Path:
        folder = Path(shutil.copytree(demo_model_dir(), tmp_path / "teacher"))
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return make


def lowered(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def longer(content: dict[str, Any]) -> None:
    content["added_tokens"].append(dict(content["added_tokens"][0], id=1216, content="<think>"))


def checked(text: str, folder: Path) -> tuple[str, ...]:
    path = folder / "job.toml"
    path.write_text(f"{HEAD}{text}")
    return check(load_spec(path), base=folder, force=False).notes


def refused(text: str, folder: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        checked(text, folder)
    assert list_runs() == []
    assert caught.value.key.startswith("distillation.")
    assert caught.value.next_step
    return caught.value


def test_a_teacher_that_is_not_there_is_refused(tmp_path: Path) -> None:
    error = refused('teacher = "nowhere/at-all/model"\n', tmp_path)
    assert "teacher" in error.what


def test_a_teacher_without_weights_is_refused(tmp_path: Path, teacher: Callable[..., Path]) -> None:
    folder = teacher()
    (folder / "model.safetensors").unlink()
    error = refused('teacher = "teacher"\n', tmp_path)
    assert error.code == "distillation.no_weights"


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    assert refused('teacher = "adapter"\n', tmp_path).code == "adapter.no_base"


def test_another_tokenizer_is_refused_with_uld_as_the_way_out(tmp_path: Path, teacher: Callable[..., Path]) -> None:
    teacher(lowered)
    error = refused('teacher = "teacher"\n', tmp_path)
    assert error.code == "distillation.other_tokenizer"
    assert "normalizer differs" in error.cause
    assert '"uld"' in error.next_step
    notes = checked('teacher = "teacher"\ntokenizers = "uld"\n', tmp_path)
    assert any("sorted probabilities" in note for note in notes)


def test_a_longer_tail_is_accepted_and_told(tmp_path: Path, teacher: Callable[..., Path]) -> None:
    teacher(longer)
    notes = checked('teacher = "teacher"\n', tmp_path)
    assert any('only the teacher has 1 token at the end of its vocabulary: "<think>"' in note for note in notes)
    assert any(
        '"same" would teach more' in note for note in checked('teacher = "demo"\ntokenizers = "uld"\n', tmp_path)
    )


def test_hidden_states_of_another_width_or_of_no_layer_are_refused(
    tmp_path: Path, teacher: Callable[..., Path]
) -> None:
    folder = teacher()
    beyond = refused('teacher = "teacher"\nhidden_weight = 1.0\nhidden_layers = [9]\n', tmp_path)
    assert (beyond.code, beyond.key) == ("distillation.no_such_layer", "distillation.hidden_layers")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    wide = refused('teacher = "teacher"\nhidden_weight = 1.0\n', tmp_path)
    assert (wide.code, wide.key) == ("distillation.other_width", "distillation.hidden_weight")


def test_rows_longer_than_the_teachers_window_are_refused(tmp_path: Path, teacher: Callable[..., Path]) -> None:
    folder = teacher()
    config = json.loads((folder / "config.json").read_text())

    def window(tokens: int) -> None:
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": tokens}))

    window(48)
    error = refused('teacher = "teacher"\n', tmp_path)
    assert (error.code, error.key) == ("distillation.window", "distillation.teacher")
    assert "Lower data.max_length to 48" in error.next_step
    checked('teacher = "teacher"\n[data]\nmax_length = 48\n', tmp_path)
    window(255)
    notes = checked('teacher = "teacher"\n[data]\nmax_length = 256\n', tmp_path)
    assert any("reads 255 tokens" in note for note in notes), "no row is that long"


def test_the_room_that_cached_logits_take_is_said_beside_what_is_free(tmp_path: Path, home: Path) -> None:
    notes = checked('teacher = "demo"\nheld = "cached"\ntop_k = 10\n', tmp_path)
    said = next(note for note in notes if "logits take" in note)
    assert "3.88K trained tokens, 10 of the likeliest each" in said
    assert f"{home / 'teachers'}: " in said
    assert "are free" in said
    elsewhere = checked('teacher = "demo"\nheld = "cached"\ncache = "kept"\n', tmp_path)
    assert any(str(tmp_path / "kept") in note for note in elsewhere)


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ('teacher = "demo"\nheld = "cached"\n', "probe.unsupported", "logits"),
        ('teacher = "self"\non_policy = 0.5\n', "probe.unsupported", "own answers"),
        ('teacher = "meta-llama/Llama-3.2-1B"\ntokenizers = "uld"\nheld = "nf4"\n', "model.no_weights", "not here"),
    ],
)
def test_what_a_probe_cannot_try_of_a_teacher_is_refused_before_it_starts(
    lines: str, code: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=words) as refused:
        probe(spec_of(lines, tmp_path), analyze("demo"), resolve_model("demo"), detect())
    assert refused.value.code == code
    assert refused.value.next_step


def test_a_dry_run_does_not_pass_over_the_teacher(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="teacher") as refused:
        dry_run(spec_of('teacher = "demo"\n', tmp_path), analyze("demo"), detect())
    assert refused.value.code == "dry_run.unsupported"


def spec_of(lines: str, folder: Path) -> JobSpec:
    path = folder / "job.toml"
    path.write_text(HEAD + lines)
    return load_spec(path)


def taught_by_adapter(folder: Path, rows: int = 0) -> Path:
    """An adapter on the demo model, its head a copy of `rows` rows where they are given."""
    width = json.loads((demo_model_dir() / "config.json").read_text())["hidden_size"]
    module = "model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": np.ones((2, width)), f"{module}.lora_B.weight": np.ones((width, 2))}
    if rows:
        tensors["lm_head.weight"] = np.ones((rows, width))
    return write_adapter(folder, tensors, demo_model_dir(), modules_to_save=["lm_head"] if rows else None)


def pickled(adapter: Path) -> Path:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    return adapter


def test_an_adapter_teaches_under_its_own_name_unless_it_is_pickled_or_has_other_tokens(tmp_path: Path) -> None:
    good = taught_by_adapter(tmp_path / "good")
    assert not any("cannot" in note for note in checked(f'teacher = "{good}"\n', tmp_path))
    shape = teacher_shape(spec_of(f'teacher = "{good}"\n', tmp_path).distillation, analyze("demo"))
    assert shape.name.startswith("good on ")
    bad = pickled(taught_by_adapter(tmp_path / "pickled"))
    assert refused(f'teacher = "{bad}"\n', tmp_path).code == "adapter.pickle"
    grown = taught_by_adapter(tmp_path / "grown", rows=1_224)
    error = refused(f'teacher = "{grown}"\n', tmp_path)
    assert error.code == "adapter.resized"
    assert "adapters merge" in error.next_step


def test_what_loads_a_teacher_looks_at_its_adapter_first(tmp_path: Path) -> None:
    bad = pickled(taught_by_adapter(tmp_path / "pickled"))
    spec = spec_of(f'teacher = "{bad}"\n', tmp_path)
    with pytest.raises(EngineError) as caught:
        read_teacher(spec, demo_model_dir(), demo_model_dir(), bad, ((), ()), str)
    assert caught.value.code == "adapter.pickle"


def test_no_more_likeliest_tokens_are_counted_than_there_are(tmp_path: Path) -> None:
    notes = checked('teacher = "demo"\nheld = "cached"\ntop_k = 5000\n', tmp_path)
    assert any("1216 of the likeliest" in note for note in notes)
