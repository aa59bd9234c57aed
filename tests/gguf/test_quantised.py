"""Smaller types in llama.cpp: what is written here is what llama.cpp writes, and what llama.cpp makes loads and differs
little.

Needs llama-cpp-python in the Python that the environment variable GGUF_PYTHON names (`make test-gguf`).
"""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.errors import EngineError
from tests.gguf.asking import Arrays, ask, need_llama_cpp
from tests.gguf.families import CHATML, Family, write_model

pytestmark = [pytest.mark.gguf, pytest.mark.slow]

WIDE = Family(
    "wide", "llama", "demo",
    {"hidden_size": 256, "head_dim": 64, "intermediate_size": 320, "num_hidden_layers": 2}, CHATML,
)  # fmt: skip
"""Rows of 256 for most matrices, and of 320 for one."""
WRITTEN, MADE = ("f32", "f16", "bf16", "q8_0"), ("q8_0", "q6_k", "q5_k_m", "q4_k_m")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.export.gguf import write_gguf

    need_llama_cpp()
    place = tmp_path_factory.mktemp("quantised")
    write_model(WIDE, place / "model")
    for kind in WRITTEN:
        write_gguf(place / "model", place / f"written-{kind}.gguf", kind)
    return place


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, tuple[tuple[str, int, str], ...]]:
    """Kind -> the matrices that were kept in a larger type."""
    from engine.export.quantise import quantise

    found = {}
    for kind in MADE:
        steps: list[tuple[int, int]] = []
        file = quantise(
            place / "written-f32.gguf", place / f"made-{kind}.gguf", kind,
            on_progress=lambda done, total, steps=steps: steps.append((done, total)),
        )  # fmt: skip
        assert file.quantiser.startswith("llama.cpp (")
        assert file.size_bytes == (place / f"made-{kind}.gguf").stat().st_size
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert 0.9 < steps[-1][0] / steps[-1][1] <= 1
        found[kind] = tuple((one.name, one.row_width, one.stored) for one in file.fallbacks)
    return found


@pytest.fixture(scope="module")
def logits(place: Path, made: object) -> Arrays:
    ids = np.random.default_rng(0).integers(3, 900, 100).tolist()
    files = [f"written-{kind}" for kind in WRITTEN] + [f"made-{kind}" for kind in MADE]
    requests = [{"name": name, "model": str(place / f"{name}.gguf"), "context": 128, "ids": ids} for name in files]
    return ask(requests, place)


def test_q8_0_is_bit_for_bit_what_llama_cpp_makes(place: Path, made: object) -> None:
    from gguf import GGUFReader

    ours = {tensor.name: tensor for tensor in GGUFReader(place / "written-q8_0.gguf").tensors}
    theirs = {tensor.name: tensor for tensor in GGUFReader(place / "made-q8_0.gguf").tensors}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.tensor_type == theirs[name].tensor_type
        assert np.array_equal(tensor.data, theirs[name].data), name


def test_smaller_types_differ_more_and_little(logits: Arrays) -> None:
    exact = logits["written-f32/logits"]
    errors = {
        name.removesuffix("/logits"): float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
        for name, found in logits.items()
        if name.endswith("/logits")
    }
    print(f"\nerror over spread: {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}")
    assert errors["written-f16"] < 0.005
    assert errors["written-bf16"] < 0.04
    assert errors["written-q8_0"] == errors["made-q8_0"] < 0.1
    assert errors["made-q8_0"] < errors["made-q6_k"] < errors["made-q5_k_m"] < errors["made-q4_k_m"] < 0.8


def test_rows_that_fill_no_blocks_are_named_with_the_type_they_got(made: dict[str, object]) -> None:
    assert made["q8_0"] == ()
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(2)]
    assert made["q6_k"] == tuple((name, 320, "q8_0") for name in names)


def test_an_importance_matrix_changes_the_result(place: Path, made: object) -> None:
    from engine.export.quantise import quantise

    matrix, seed = place / "old.dat", np.random.default_rng(1)
    names = [f"blk.{layer}.ffn_{part}.weight" for layer in range(2) for part in ("gate", "up")]
    entries = [(name, seed.lognormal(0, 2, 256).astype("<f4")) for name in names]
    matrix.write_bytes(
        struct.pack("<i", len(entries))
        + b"".join(
            struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, values.size) + values.tobytes()
            for name, values in entries
        )
    )
    file = quantise(place / "written-f32.gguf", place / "weighed.gguf", "q4_k_m", imatrix=matrix)
    assert file.imatrix
    assert (place / "weighed.gguf").read_bytes() != (place / "made-q4_k_m.gguf").read_bytes()


def test_what_llama_cpp_cannot_read_is_told_in_its_words(place: Path, tmp_path: Path) -> None:
    from engine.export.quantise import quantise

    cut = tmp_path / "cut.gguf"
    cut.write_bytes((place / "written-f16.gguf").read_bytes()[:200_000])
    with pytest.raises(EngineError) as refusal:
        quantise(cut, tmp_path / "out.gguf", "q4_k_m")
    assert refusal.value.code == "export.quantiser"
    assert refusal.value.cause
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


# Quantises for real; stops after the first weight until a line arrives, so that it is certainly busy when it is killed.
CHILD = """
import sys
from pathlib import Path
from engine.export.quantise import quantise
def stop(done, total):
    print("quantising", flush=True)
    sys.stdin.readline()
quantise(Path(sys.argv[1]), Path(sys.argv[2]), "q4_k_m", on_progress=stop)
"""


def test_killed_with_minus_nine_nothing_has_the_name_and_the_next_attempt_ends(
    place: Path, made: object, tmp_path: Path
) -> None:
    from engine.export.quantise import quantise

    out = tmp_path / "model.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place / "written-f32.gguf"), str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"quantising\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    quantise(place / "written-f32.gguf", out, "q4_k_m")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert out.read_bytes() == (place / "made-q4_k_m.gguf").read_bytes()
