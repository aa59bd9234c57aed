"""What a spec that mixes adapters must say together; each refusal names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import dump_spec, load_spec

TWO = [{"path": "/a", "weight": 0.5}, {"path": "/b", "weight": -0.5}]


def spec(**tree: Any) -> JobSpec:
    return msgspec.convert({"task": "mix", "adapters": TWO, **tree}, JobSpec)


def refused(**tree: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        spec(**tree)
    assert caught.value.code == "spec.conflict"
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize(
    ("key", "tree"),
    [
        ("adapters", {"adapters": []}),
        ("adapters[1].path", {"task": "lora"}),
        ("mix.method", {"task": "lora", "adapters": [], "mix": {"method": "ties"}}),
        ("quantization.kind", {"quantization": {"kind": "nf4"}}),
        ("stages[1]", {"stages": [{"max_steps": 3}]}),
        ("expansion.to", {"expansion": {"to": "2x"}}),
        ("mix.density", {"mix": {"density": 0.3}}),
        ("mix.signs", {"mix": {"method": "dare", "signs": "frequency"}}),
        ("mix.rank", {"mix": {"method": "svd"}}),
        ("mix.sweep", {"mix": {"sweep": 9}, "data": {"heldout": "", "heldout_fraction": 0.0}}),
        ("adapters[1].weight", {"mix": {"method": "linear"}}),
        ("adapters[1].weight", {"adapters": [{"path": "/a", "weight": 0.0}]}),
        ("adapters[2].path", {"adapters": [{"path": "/a"}, {"path": "/a/"}]}),
        ("adapters[2].name", {"adapters": [{"path": "/a", "name": "x"}, {"path": "/b", "name": "x"}]}),
        ("retention[1].action", {"retention": [{"on": "base_text", "action": "stop"}]}),
    ],
)
def test_what_a_mix_cannot_mean_is_refused_with_its_key(key: str, tree: dict[str, Any]) -> None:
    assert refused(**tree).key == key


def test_a_mix_may_be_merged_followed_and_held_to_limits(tmp_path: Path) -> None:
    found = spec(
        output={"merge": True},
        mix={"method": "ties", "density": 0.3, "signs": "frequency", "sweep": 20},
        suites=[{"name": "mine", "path": "/text"}],
        retention=[{"on": "base_text", "action": "hold"}, {"on": "mine", "action": "hold"}],
    )
    assert not found.task.trains
    assert found.quantization_kind == "none"
    (tmp_path / "mix.toml").write_text(dump_spec(found))
    assert load_spec(tmp_path / "mix.toml") == found
    assert "\n[expansion]\n" not in dump_spec(found)
