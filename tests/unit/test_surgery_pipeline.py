"""The threads between a slice and the disk: order, hashes, failures that reach the producer, bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from engine.expansion.plan_io import encode_plan
from engine.models.config import CONFIG_NAME
from engine.surgery.pipeline import OutFile, Pipeline
from tests.support.surgery_models import TINY, llama_shapes, plan_for, write_llama

SIZE = 4096


def test_bytes_arrive_in_order_hashed_and_sealed(tmp_path: Path) -> None:
    wanted = [np.random.default_rng(part).integers(0, 256, SIZE, dtype=np.uint8).tobytes() for part in range(40)]
    sealed: list[str] = []
    with Pipeline(buffer_bytes=SIZE, buffers=3) as pipeline:
        for number in range(2):
            file = pipeline.open(tmp_path / f"file{number}", 5 + 42 * SIZE)
            pipeline.put_bytes(file, 0, b"head:")
            for index, content in enumerate(wanted):
                buffer = pipeline.buffer(SIZE)
                buffer[:SIZE] = np.frombuffer(content, np.uint8)
                pipeline.put(file, 5 + index * SIZE, buffer, SIZE)
            pipeline.put_zeros(file, 5 + 40 * SIZE, 2 * SIZE)
            pipeline.seal(file, lambda done: sealed.append(done.sha256))
    expected = b"head:" + b"".join(wanted) + bytes(2 * SIZE)
    assert (tmp_path / "file0").read_bytes() == (tmp_path / "file1").read_bytes() == expected
    assert sealed == [hashlib.sha256(expected).hexdigest()] * 2


@pytest.mark.parametrize("origin", ["file", "device"])
def test_bytes_with_an_origin_are_copied_by_the_kernel_or_else_written(tmp_path: Path, origin: str) -> None:
    content = np.random.default_rng(1).integers(0, 256, 3 * SIZE, dtype=np.uint8)
    (tmp_path / "source").write_bytes(b"before" + content.tobytes())
    handle = os.open(tmp_path / "source" if origin == "file" else "/dev/zero", os.O_RDONLY)
    with Pipeline(buffer_bytes=SIZE, buffers=2) as pipeline:
        file = pipeline.open(tmp_path / "out", 2 + content.size)
        pipeline.put_bytes(file, 0, b"ab")
        for start in range(0, content.size, SIZE):
            buffer = pipeline.buffer(SIZE)
            buffer[:] = content[start : start + SIZE]
            pipeline.put(file, 2 + start, buffer, SIZE, (handle, 6 + start))
    os.close(handle)
    assert (tmp_path / "out").read_bytes() == b"ab" + content.tobytes()


@pytest.mark.timeout(60)
def test_a_disk_that_fills_up_in_a_thread_stops_the_producer(tmp_path: Path) -> None:
    def endless() -> None:
        with Pipeline(buffer_bytes=SIZE, buffers=3) as pipeline:
            file = OutFile(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY))
            for index in range(1_000_000):
                pipeline.put(file, index * SIZE, pipeline.buffer(SIZE), SIZE)

    with pytest.raises(OSError, match="No space left"):
        endless()


@pytest.mark.timeout(60)
def test_an_error_of_the_producer_ends_the_threads_and_closes_files(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def fails() -> None:
        with Pipeline(buffer_bytes=SIZE, buffers=3) as pipeline:
            pipeline.open(tmp_path / "file", SIZE)
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fails()
    assert len(os.listdir("/proc/self/fd")) == before


MEASURE = textwrap.dedent(
    """
    import sys, threading
    from pathlib import Path
    from engine.expansion.plan_io import decode_plan
    from engine.surgery.expand import ExpandRequest, expand
    peak = [0]
    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    def report(progress):
        peak[0] = max(peak[0], status("RssAnon"))
    plan = decode_plan(Path(sys.argv[3]).read_bytes())
    certificate = expand(ExpandRequest(Path(sys.argv[1]), Path(sys.argv[2]), plan, proof=False), report)
    print(peak[0], status("VmHWM"), certificate.peak_rss_bytes, "torch" in sys.modules)
    """
)


@pytest.mark.slow
def test_two_gigabytes_are_grown_in_a_fraction_of_their_size(tmp_path: Path) -> None:
    dims = type(TINY)(layers=4, hidden=3072, ffn=20480, heads=24, kv_heads=8, head_dim=128, vocab=32000)
    source = tmp_path / "src"
    write_llama(tmp_path / "config", type(TINY)(1, 32, 64, 4, 2, 8, 96))
    source.mkdir()
    tree = json.loads((tmp_path / "config" / CONFIG_NAME).read_text()) | {
        "hidden_size": 3072, "intermediate_size": 20480, "num_hidden_layers": 4, "num_attention_heads": 24,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
    }  # fmt: skip
    (source / CONFIG_NAME).write_text(json.dumps(tree))
    header, position = {}, 0
    for name, shape in llama_shapes(dims, tied=False).items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
    assert position > 2_000_000_000
    after = type(TINY)(layers=4, hidden=3840, ffn=20736, heads=24, kv_heads=8, head_dim=128, vocab=32000)
    (tmp_path / "plan.json").write_bytes(encode_plan(plan_for(dims, after, {"hidden": "pad", "ffn": "pad"})))
    words = [str(source), str(tmp_path / "out"), str(tmp_path / "plan.json")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    anonymous, resident, certified, torch = done.stdout.split()
    assert int(anonymous) < 300_000_000
    assert int(resident) < 400_000_000
    assert int(certified) <= int(resident)
    assert torch == "False"
