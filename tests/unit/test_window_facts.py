"""What the wizard knows of a longer window: the window is the model's present one, whatever it was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError
from engine.resources import demo_model_dir
from scaler_tui.window_choices import length_options
from scaler_tui.window_facts import window_facts


def extended(folder: Path, **scaling: Any) -> str:
    """The demo model with a window of 1,024."""
    shutil.copytree(demo_model_dir(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 1024
    config["rope_parameters"] |= {"original_max_position_embeddings": 256, "factor": 4.0, **scaling}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "yarn"}, {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}],
    ids=["yarn", "llama3"],
)
def test_the_window_of_an_extended_model_is_its_present_one(tmp_path: Path, scaling: dict[str, Any]) -> None:
    model = extended(tmp_path / "model", **scaling)
    facts = window_facts(model, 2048)
    assert facts.original == 1024
    offered = length_options(facts.original, facts.target)
    assert offered[0].words == "2 times the window of 1,024"
    for option in offered:
        try:
            window_facts(model, int(option.value))
        except EngineError as refused:
            pytest.fail(f"{option.value} is offered and refused: {refused.what}")
