"""The README of an exported model: what was done, figures, data, and the base's licence as the base states it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.export.licence import UNKNOWN, front_matter, licence_of
from engine.export.modelcard import ModelFacts, model_card
from engine.export.order import ExportOrder
from engine.export.origin import origin_of
from engine.jobs.card import Adapter, Card, MergeCheck, Scores
from engine.jobs.spec import DataSection, JobSpec, ModelSection
from engine.jobs.spec_export import Destination
from engine.resources import demo_model_dir


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "identifier", "origin"),
    [
        ({"README__md": "---\nlicense: mit\nbase_model: a/b\n---\n# x"}, "mit", "README.md"),
        ({"README__md": "---\nlicense: 'llama3.2' # community\n---"}, "llama3.2", "README.md"),
        ({"SOURCE_README__md": "---\nlicense:\n- gemma\n---"}, "gemma", "SOURCE_README.md"),
        ({"LICENSE": "  Apache License\n  Version 2.0, January 2004"}, "apache-2.0", "LICENSE"),
        ({"LICENSE__txt": "MIT License\n\nCopyright"}, "mit", "LICENSE.txt"),
        ({"LICENSE": "My own words."}, "other", "LICENSE"),
        ({"config__json": json.dumps({"license": "bsd-3-clause"})}, "bsd-3-clause", "config.json"),
        ({"README__md": "# no front matter", "config__json": "{}"}, UNKNOWN, ""),
        ({"USE_POLICY__md": "Be good."}, UNKNOWN, ""),
        ({"LICENSE": "Their own words.", "NOTICE": "Uses x, under the MIT License"}, "other", "LICENSE"),
        ({"NOTICE": "Apache License, Version 2.0 applies to some parts"}, UNKNOWN, ""),
        ({"LICENSE": "Community Agreement\n" + "x" * 500 + "\nParts: MIT License"}, "other", "LICENSE"),
        ({"LICENSE-A": "MIT License", "LICENSE-B": "Apache License\nVersion 2.0"}, "other", "LICENSE-A and LICENSE-B"),
    ],
)
def test_the_licence_is_what_the_base_says(files: dict[str, str], identifier: str, origin: str, tmp_path: Path) -> None:
    found = licence_of(folder(tmp_path, **files))
    assert found.identifier == identifier
    assert origin in found.origin


def test_what_the_readme_says_wins_over_a_text_beside_it_and_the_text_goes_along(tmp_path: Path) -> None:
    files = {"README__md": "---\nlicense: other\nlicense_name: mine\n---", "LICENSE": "MIT License"}
    found = licence_of(folder(tmp_path, **files))
    assert (found.identifier, found.name) == ("other", "mine")
    assert [file.name for file in found.files] == ["LICENSE"]


def test_a_known_models_licence_is_known_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = licence_of(tmp_path, "meta-llama/Llama-3.2-1B")
    assert found.name == "Llama 3.2 Community License"
    assert licence_of(tmp_path, "somebody/unheard-of").identifier == UNKNOWN


@pytest.mark.parametrize("text", ["", "---", "---\nno end", "---\n: : :\n\t- \n---", "--- \nlicense: x"])
def test_odd_front_matter_is_no_error(text: str) -> None:
    assert isinstance(front_matter(text), dict)


CARD = Card(
    run_id="20261126-1", name="my run", task="lora", model="Qwen/Qwen3-0.6B", created=0.0,
    before=Scores(task_loss=2.0, task_tokens=10, exact_match=0.1, exact_match_rows=8),
    after=Scores(task_loss=1.5, task_tokens=10, exact_match=0.6, exact_match_rows=8),
    samples=(), steps=12, tokens=3000, trained_tokens=900, training_seconds=30.0, working_seconds=40.0, cost_usd=0.0,
    adapter=Adapter(path="output/adapter", size_bytes=1, parameters=2), merged=None, predicted=(), loss_curve=(),
    eval_curve=(), spec_hash="5" * 64, data_sha256="d" * 64, attempts=1, device="a card",
    versions={"torch": "2.13.0"}, notes=(),
)  # fmt: skip


def test_a_card_says_what_was_done_on_which_data_and_how_well(tmp_path: Path) -> None:
    spec = JobSpec(model=ModelSection(source="Qwen/Qwen3-0.6B"), data=DataSection(train="/home/me/secret/rows.jsonl"))
    licence = licence_of(folder(tmp_path, README__md="---\nlicense: apache-2.0\n---"))
    facts = ModelFacts("my-run", "Qwen/Qwen3-0.6B", licence, True, card=CARD, spec=spec, parameters=600_000_000)
    text = model_card(facts)
    assert text.startswith("---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-0.6B\nbase_model_relation: finetune\n")
    for words in ("LoRA", "12 steps", "600M parameters", "(nats per token) | 2.0000 | 1.5000 |", "10.0% | 60.0%"):
        assert words in text
    assert f"`{'d' * 64}`" in text
    assert f"`{'5' * 64}`" in text
    assert "apache-2.0, carried over from Qwen/Qwen3-0.6B" in text
    assert "torch 2.13.0" in text
    assert 'train = "rows.jsonl"' in text
    assert "/home/me" not in text, "a published card tells nothing of the machine"


def test_a_merge_is_told_with_its_difference(tmp_path: Path) -> None:
    import msgspec

    merged = MergeCheck(
        path="output/merged", size_bytes=1, max_logit_difference=0.1, mean_logit_difference=0.01, same_top_token=0.99,
        merged_task_loss=1.51, adapter_task_loss=1.5, base_dtype="nf4",
    )  # fmt: skip
    card = msgspec.structs.replace(CARD, merged=merged)
    text = model_card(ModelFacts("x", "base", licence_of(tmp_path), card=card))
    assert "against the adapter on its nf4 base" in text
    assert "99.00%" in text


def test_an_unknown_licence_is_said_plainly(tmp_path: Path) -> None:
    text = model_card(ModelFacts("x", "some-folder", licence_of(tmp_path)))
    assert "license: unknown" in text
    assert "Unknown: some-folder does not say" in text
    assert "base_model:" not in text, "a folder's name is nothing on the hub"


def test_an_odd_licence_name_cannot_break_the_front_matter(tmp_path: Path) -> None:
    licence = licence_of(folder(tmp_path, README__md='---\nlicense: other\nlicense_name: a "b": c\n---'))
    assert 'license_name: "a \\"b\\": c"' in model_card(ModelFacts("x", "y", licence))


def test_a_folder_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec named the base by a path that is another one from here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    shutil.copytree(demo_model_dir(), base)
    for named, on_hub in (("models/mine", False), ("Qwen/Qwen3-0.6B", True)):
        config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": named}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        order = ExportOrder(
            destination=Destination.HF, source=str(adapter), base=str(base), out=str(tmp_path / "out"), name="x"
        )
        origin = origin_of(order)
        assert origin.on_hub is on_hub
        assert origin.base == (named if on_hub else "mine")


def test_the_demo_states_its_licence(tmp_path: Path) -> None:
    shutil.copytree(demo_model_dir(), tmp_path / "m")
    assert licence_of(tmp_path / "m").identifier == "apache-2.0"
