"""Specs that cannot be meant: each is refused before anything starts, with the line of the file and a way out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError
from engine.jobs.spec import JobSpec
from engine.jobs.spec_checks_evaluation import DEMO_SKILLS
from engine.jobs.spec_toml import load_spec, naming_lines
from engine.resources import demo_dir

HERE = "# here"


def cases() -> dict[str, tuple[str, str]]:
    """`tests/data/refused_specs.txt`: name -> (words of the refusal, spec with a mark at the line it must name)."""
    text = (Path(__file__).parents[1] / "data" / "refused_specs.txt").read_text(encoding="utf-8")
    found = {}
    for block in text.split("=== ")[1:]:
        title, _, spec = block.partition("\n")
        name, _, words = title.partition(" | ")
        found[name] = (words, spec)
    return found


CASES = cases()


@pytest.mark.parametrize("why", CASES)
def test_it_is_refused_with_its_line_and_a_way_out(why: str, tmp_path: Path) -> None:
    words, text = CASES[why]
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(EngineError) as caught:
        load_spec(path)
    refused = caught.value
    line = text[: text.index(HERE)].count("\n") + 1
    assert refused.what.startswith(f"{path}: line {line}: "), refused.what
    assert words in refused.what + refused.next_step
    assert refused.next_step


def test_the_demo_skills_are_those_that_ship() -> None:
    shipped = {path.stem for path in (demo_dir() / "tasks").glob("demo_*.yaml")}
    assert shipped == set(DEMO_SKILLS)


def test_a_refusal_of_the_model_names_the_line_too(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("task = 'full'\n\n[[stages]]\nlayers = 3\n")
    with pytest.raises(EngineError) as refused, naming_lines(path):
        raise EngineError("expansion.smaller", "Stage 1 would shrink the model.", key="stages[1].layers")
    assert refused.value.what == f"{path}: line 4: Stage 1 would shrink the model."
    with pytest.raises(EngineError) as other, naming_lines(path):
        raise EngineError("disk.full", "No room.")
    assert other.value.what == "No room."


def test_what_a_stage_inherits_and_cannot_use_is_left_out_of_it() -> None:
    tree = {
        "task": "full",
        "sources": [{"name": "web", "path": "web.jsonl"}],
        "training": {
            "schedule": "wsd", "decay_ratio": 0.5, "final_rate_ratio": 0.1, "trainable": ["*.mlp.*"],
            "max_tokens": 1000, "ramp_from": 1,
        },
        "stop": {"hours": 2.0},
        "retention": [{"on": "web", "action": "hold"}],
        "distributed": {"processes": 1},
        "stages": [
            {}, {"task": "expand", "layers": 9}, {"schedule": "constant", "max_steps": 5}, {"task": "new_blocks"},
        ],
    }  # fmt: skip

    first, grow, constant, blocks = msgspec.convert(tree, JobSpec).staged()
    assert (first.training.max_tokens, first.training.decay_ratio, first.training.trainable) == (
        1000,
        0.5,
        ("*.mlp.*",),
    )
    assert (grow.sources, grow.retention, grow.training.max_tokens, grow.stop.hours) == ((), (), 0, 0.0)
    assert (constant.training.final_rate_ratio, constant.training.decay_ratio) == (0.0, 0.2)
    assert (constant.training.max_steps, constant.training.max_tokens) == (5, 0)
    assert (blocks.training.trainable, blocks.training.ramp_from) == ((), 1)
