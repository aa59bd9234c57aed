"""Specs with a teacher that are meant: adapters, whole weights, growth, stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.jobs.spec_distillation import DistillationSection
from engine.jobs.spec_toml import dump_spec, load_spec

MEANT = {
    "an adapter that stays near its base": '[distillation]\nteacher = "self"\nhidden_weight = 1.0\nce_weight = 1.0\n',
    "cached logits": '[distillation]\nteacher = "demo"\nheld = "cached"\nmissing_mass = "renormalise"\ncache = "x"\n',
    "another tokenizer": '[distillation]\nteacher = "demo"\ntokenizers = "uld"\ntemperature = 2.0\n',
    "its own answers": '[distillation]\nteacher = "demo"\non_policy = 0.5\nloss = "jsd"\nbeta = 0.9\n',
    "a grown student heals": 'task = "full"\n[expansion]\nlayers = 12\n[distillation]\nteacher = "self"\n',
    "whole weights that stay near what they were": 'task = "full"\n[distillation]\nteacher = "self"\nheld = "nf4"\n',
    "a stream": 'task = "full"\n[distillation]\nteacher = "demo"\n[[sources]]\nname = "a"\npath = "a.txt"\n',
}


@pytest.mark.parametrize("why", MEANT)
def test_it_is_read_and_written_as_it_was(why: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(MEANT[why])
    spec = load_spec(path)
    assert spec.distillation.distils
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


def test_a_stage_that_only_grows_has_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    stages = '[[stages]]\ntask = "expand"\nlayers = 12\n[[stages]]\nmax_steps = 5\n'
    path.write_text(f'task = "full"\n[distillation]\nteacher = "self"\n{stages}')
    grows, trains = load_spec(path).staged()
    assert grows.distillation == DistillationSection()
    assert trains.distillation.teacher == "self"
