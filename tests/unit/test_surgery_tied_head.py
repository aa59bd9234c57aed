"""A head stored beside the embedding it is tied to: a copy is dropped, another head is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.surgery.expand import ExpandRequest, expand
from tests.support.surgery_models import TINY, plan_for, read_folder, write_llama

WIDER = plan_for(TINY, replace(TINY, hidden=48, ffn=96), {"hidden": "pad", "ffn": "pad"})


def stored_beside(folder: Path, *, equal: bool) -> Path:
    """An untied model's files under a config that ties the head."""
    source = write_llama(folder, files=1)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    if equal:
        path = source / "model.safetensors"
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        (begin, end), (to, stop) = (
            header[name]["data_offsets"] for name in ("model.embed_tokens.weight", "lm_head.weight")
        )
        data[start + to : start + stop] = data[start + begin : start + end]
        path.write_bytes(data)
    return source


def test_a_head_that_equals_its_embedding_is_left_to_the_tie(tmp_path: Path) -> None:
    source = stored_beside(tmp_path / "src", equal=True)
    expand(ExpandRequest(source, tmp_path / "out", WIDER, proof=False), lambda _: None)
    assert "lm_head.weight" not in read_folder(tmp_path / "out")


def test_a_head_with_values_of_its_own_is_refused(tmp_path: Path) -> None:
    source = stored_beside(tmp_path / "src", equal=False)
    with pytest.raises(EngineError) as caught:
        expand(ExpandRequest(source, tmp_path / "out", WIDER, proof=False), lambda _: None)
    assert caught.value.code == "surgery.head_differs"
    assert not (tmp_path / "out").exists()
