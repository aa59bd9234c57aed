"""Safetensors headers: what is read from good files, and what is said about every kind of damaged one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.models.headers import DTYPE_BITS, read_headers
from engine.models.weights import count_weights


def encode(header: Any, data_bytes: int) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + b"\0" * data_bytes


def layout(tensors: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BITS[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size // 8]}
        position += size // 8
    return header, position


def write(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> Path:
    path.write_bytes(encode(*layout(tensors)))
    return path


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def error_of(path: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        read_headers(path)
    assert caught.value.next_step, "every error says what to do"
    assert str(path.name) in caught.value.what or str(path.parent) in caught.value.what
    return caught.value


def test_tensors_of_a_single_file_are_listed_with_type_shape_and_bytes(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": ("BF16", [3, 4]), "b": ("F32", [5]), "scalar": ("I64", [])})
    headers = read_headers(tmp_path)
    assert [(t.name, t.dtype, t.shape, t.data_bytes) for t in headers.tensors] == [
        ("a", "BF16", (3, 4), 24),
        ("b", "F32", (5,), 20),
        ("scalar", "I64", (), 8),
    ]
    assert (headers.elements, headers.data_bytes) == (18, 52)


def test_real_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {"x": torch.zeros(3, 5, dtype=torch.bfloat16), "y": torch.ones(7), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    headers = read_headers(tmp_path)
    assert {t.name: t.shape for t in headers.tensors} == {"x": (3, 5), "y": (7,), "empty": (0, 4)}


DAMAGED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "0 bytes"),
    ("four bytes", b"abcd", "only 4 bytes"),
    ("absurd header length", (2**60).to_bytes(8, "little") + b"{}", "header claims"),
    ("zero header length", bytes(8) + b"{}", "header claims"),
    ("header cut off", (500).to_bytes(8, "little") + b'{"w"', "ends after"),
    ("broken JSON", encode(b'{"w": [1,', 0), "not valid JSON"),
    ("deep JSON", encode(b"[" * 50_000, 0), "not valid JSON"),
    ("JSON list", encode([1], 0), "not a JSON object"),
    ("entry is a number", encode({"w": 3}, 0), "not an object"),
    ("unknown dtype", encode(entry(dtype="X99"), 16), "unknown data type"),
    ("dtype is a list", encode(entry(dtype=["F32"]), 16), "unknown data type"),
    ("negative shape", encode(entry(shape=[-2, -2]), 16), "impossible shape"),
    ("shape of text", encode(entry(shape=["2", 2]), 16), "impossible shape"),
    ("shape overflows", encode(entry(shape=[2**40, 2**40]), 16), "impossible shape"),
    ("three offsets", encode(entry(offsets=[0, 8, 16]), 16), "impossible data offsets"),
    ("offsets backwards", encode(entry(offsets=[16, 0]), 16), "impossible data offsets"),
    ("offsets outside", encode(entry(offsets=[0, 16]), 8), "has only 8"),
    ("size does not match", encode(entry(shape=[2, 3]), 16), "does not take"),
    ("data left over", encode(entry(), 20), "belong to no tensor"),
    (
        "overlap",
        encode(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            12,
        ),
        "overlaps",
    ),
    ("hole", encode({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12), "hole"),
]


@pytest.mark.parametrize(("content", "expected"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    error = error_of(path)
    assert error.code == "safetensors.damaged"
    assert expected in error.what


def test_download_cut_off_in_the_data_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": ("F32", [100]), "b": ("F32", [100])})
    os.truncate(path, path.stat().st_size - 1)
    assert "'b'" in error_of(path).what


def test_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    error = error_of(path)
    assert (error.code, "git lfs pull" in error.next_step) == ("safetensors.pointer", True)


def test_missing_file_and_folder_without_weights_are_errors(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nothing.safetensors").code == "safetensors.unreadable"
    assert error_of(tmp_path).code == "safetensors.none"


def sharded(folder: Path, weight_map: Any, files: dict[str, dict[str, tuple[str, list[int]]]]) -> Path:
    for name, tensors in files.items():
        write(folder / name, tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards_are_read_together(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": ONE, "b": TWO}, {ONE: {"a": ("BF16", [4])}, TWO: {"b": ("BF16", [6])}})
    headers = read_headers(tmp_path)
    assert {t.name: t.file.name for t in headers.tensors} == {"a": ONE, "b": TWO}
    assert headers.elements == 10


def test_missing_shards_are_named(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": ONE, "b": TWO}, {ONE: {"a": ("BF16", [4])}})
    error = error_of(tmp_path)
    assert error.code == "safetensors.missing_shards"
    assert TWO in error.cause


def test_shards_without_index_are_reported_with_the_missing_part(tmp_path: Path) -> None:
    write(tmp_path / ONE, {"a": ("BF16", [4])})
    assert "parts 2 of 2" in error_of(tmp_path).what
    write(tmp_path / TWO, {"b": ("BF16", [4])})
    assert "model.safetensors.index.json is missing" in error_of(tmp_path).what


@pytest.mark.parametrize(
    "target", ["../evil.safetensors", "/etc/evil.safetensors", "a\\..\\b.safetensors", "C:x.safetensors"]
)
def test_index_that_points_outside_its_folder_is_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path / "evil.safetensors", {"a": ("BF16", [4])})
    folder = tmp_path / "model"
    folder.mkdir()
    error = error_of(sharded(folder, {"a": target}, {}))
    assert error.code == "safetensors.index"
    assert "outside" in error.what


@pytest.mark.parametrize(
    "weight_map", [None, [], {}, "x", {"a": "pytorch_model.bin"}, {"a": 7}, {"a": ["x"]}, {"a": ""}]
)
def test_index_that_is_no_index_is_refused(tmp_path: Path, weight_map: Any) -> None:
    assert error_of(sharded(tmp_path, weight_map, {})).code == "safetensors.index"


def test_index_naming_tensors_that_no_file_holds_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": ONE, "ghost": ONE}, {ONE: {"a": ("BF16", [4])}})
    assert "ghost" in error_of(tmp_path).cause


def test_symlinked_shards_as_in_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write(blobs / "blob", {"a": ("BF16", [4])})
    sharded(snapshot, {"a": ONE}, {})
    (snapshot / ONE).symlink_to("../../blobs/blob")
    assert read_headers(snapshot).elements == 4


HEADER_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**65)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "w"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_only_ever_raise_engine_errors(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    for data in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(data)
        only_engine_errors(path)


@settings(max_examples=300, deadline=None)
@given(header=st.dictionaries(st.text(max_size=4), HEADER_VALUES, max_size=4), data_bytes=st.integers(0, 40))
def test_random_headers_only_ever_raise_engine_errors(
    tmp_path_factory: pytest.TempPathFactory, header: Any, data_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(encode(header, data_bytes))
    only_engine_errors(path)


@settings(max_examples=200, deadline=None)
@given(index=HEADER_VALUES)
def test_random_indexes_only_ever_raise_engine_errors(tmp_path_factory: pytest.TempPathFactory, index: Any) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    only_engine_errors(folder)


def only_engine_errors(path: Path) -> None:
    try:
        read_headers(path)
    except EngineError as error:
        caught = error
    else:
        return
    assert caught.what
    assert caught.next_step


def test_bitsandbytes_4bit_checkpoint_counts_its_real_parameters(tmp_path: Path) -> None:
    """A real NF4 file: two parameters a byte, the quantisation tables beside them not counted."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    options = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**options, num_attention_heads=4, num_key_value_heads=2)
    plain = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    plain.save_pretrained(tmp_path / "plain")
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    packed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=quantization)
    packed.save_pretrained(tmp_path / "packed")
    headers = read_headers(tmp_path / "packed")
    counted = count_weights(headers, {"quant_method": "bitsandbytes"}, multimodal=False)
    assert headers.elements != plain.num_parameters()
    assert counted.parameters == plain.num_parameters()
    assert counted.quantization == "bitsandbytes 4-bit"
    assert any("packed" in note for note in counted.notes)


PACKED_LAYER: list[tuple[str, dict[str, Any], dict[str, tuple[str, list[int]]]]] = [
    (
        "gptq 4-bit",
        {"quant_method": "gptq", "bits": 4},
        {
            "l.qweight": ("I32", [16, 64]),
            "l.qzeros": ("I32", [1, 8]),
            "l.scales": ("F16", [1, 64]),
            "l.g_idx": ("I32", [128]),
        },
    ),
    (
        "gptq 8-bit",
        {"quant_method": "gptq", "bits": 8},
        {"l.qweight": ("I32", [32, 64]), "l.qzeros": ("I32", [1, 16]), "l.scales": ("F16", [1, 64])},
    ),
    (
        "awq 4-bit",
        {"quant_method": "awq", "bits": 4},
        {"l.qweight": ("I32", [128, 8]), "l.qzeros": ("I32", [1, 8]), "l.scales": ("F16", [1, 64])},
    ),
    (
        "compressed-tensors 4-bit",
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
        {"l.weight_packed": ("I32", [64, 16]), "l.weight_scale": ("BF16", [64, 1]), "l.weight_shape": ("I64", [2])},
    ),
    ("fp8 8-bit", {"quant_method": "fp8"}, {"l.weight": ("F8_E4M3", [64, 128]), "l.weight_scale_inv": ("F32", [1, 1])}),
    ("bitsandbytes 8-bit", {}, {"l.weight": ("I8", [64, 128]), "l.SCB": ("F32", [64]), "l.weight_format": ("U8", [])}),
    ("mxfp4 4-bit", {}, {"l.gate_up_proj_blocks": ("U8", [64, 4, 16]), "l.gate_up_proj_scales": ("U8", [64, 4])}),
]


@pytest.mark.parametrize(("kind", "config", "tensors"), PACKED_LAYER, ids=[case[0] for case in PACKED_LAYER])
def test_packed_layer_of_64_by_128_counts_8192_parameters(
    tmp_path: Path, kind: str, config: dict[str, Any], tensors: dict[str, tuple[str, list[int]]]
) -> None:
    headers = read_headers(write(tmp_path / "model.safetensors", tensors))
    counted = count_weights(headers, config, multimodal=False)
    assert (counted.parameters, counted.quantization) == (64 * 128, kind)


def test_stored_constants_of_old_checkpoints_are_not_parameters(tmp_path: Path) -> None:
    """What the hub's Pythia files hold beside their weights."""
    tensors = {
        "gpt_neox.layers.0.attention.query_key_value.weight": ("F16", [24, 8]),
        "gpt_neox.layers.0.attention.query_key_value.bias": ("F16", [24]),
        "gpt_neox.layers.0.attention.bias": ("U8", [1, 1, 16, 16]),
        "gpt_neox.layers.0.attention.masked_bias": ("F16", []),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": ("F16", [2]),
    }
    counted = count_weights(read_headers(write(tmp_path / "model.safetensors", tensors)), {}, multimodal=False)
    assert counted.parameters == 24 * 8 + 24
    assert any("3 stored tensors are constants" in note for note in counted.notes)


def test_plain_parameter_called_scales_is_counted(tmp_path: Path) -> None:
    counted = count_weights(
        read_headers(write(tmp_path / "model.safetensors", {"norm.scales": ("F32", [12])})), {}, multimodal=False
    )
    assert counted.parameters == 12
