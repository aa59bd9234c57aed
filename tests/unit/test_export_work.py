"""Exports: whole or not there, resumable after a kill, nothing overwritten, refusals with a way out."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from gguf import GGUFReader

from engine.errors import EngineError
from engine.export.beforehand import check_source
from engine.export.finished import RECORD
from engine.export.gguf_files import GgufWork
from engine.export.licence import UNKNOWN, Licence
from engine.export.ollama_files import write_modelfiles
from engine.export.order import ExportOrder, check_order, file_name, largest_first
from engine.export.staging import finish, staging_of
from engine.export.work import export
from engine.jobs.export_report import ExportedFile, ExportReport
from engine.jobs.spec_export import Destination
from engine.resources import demo_model_dir
from engine.surgery.staging import sha256_of
from scaler_tui.cli import main
from tests.support.adapter_files import write_adapter
from tests.support.cli import ROOT, cli, environment, wait_for
from tests.support.golden_results import agreement

NO_RUNTIME = {"GGUF_PYTHON": "/nowhere/python"}


def order_for(out: Path, destination: str = "gguf", **fields: Any) -> ExportOrder:
    settings = {"source": str(demo_model_dir()), "name": "demo", "types": ("q8_0",), "verify": False} | fields
    return ExportOrder(destination=Destination(destination), out=str(out), **settings)


def work(order: ExportOrder, place: Path) -> tuple[int, ExportReport | None, dict[str, str]]:
    """In this process: (exit code, report, error)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGUF_PYTHON", NO_RUNTIME["GGUF_PYTHON"])
        try:
            return 0, export(order, lambda *_: None), {}
        except EngineError as error:
            return int(error.exit_code), None, error.as_dict()


def process(
    order: ExportOrder, place: Path, limit: Callable[[], None] | None = None, **variables: str
) -> tuple[int, dict[str, str]]:
    """One process: (exit code, error)."""
    orders, report = place / "order.json", place / "report.json"
    orders.write_bytes(msgspec.json.encode(order))
    ended = subprocess.run(
        [sys.executable, "-m", "engine.export.work", str(orders), str(report)],
        env=environment(**(NO_RUNTIME | variables)), cwd=ROOT, capture_output=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    errors = [json.loads(line)["error"] for line in ended.stdout.splitlines() if b'"error"' in line]
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    assert (ended.returncode == 0) == report.is_file()
    return ended.returncode, errors[-1] if errors else {}


def hidden(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if path.name.startswith(".")]


def test_files_appear_with_their_sizes_and_sums_and_nothing_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, report, _ = work(order_for(out, types=("f16", "q8_0"), verify=True), tmp_path)
    assert code == 0
    assert report is not None
    assert [(Path(file.path).name, file.kind) for file in report.files] == [
        ("demo.F16.gguf", "f16"), ("demo.Q8_0.gguf", "q8_0"),
    ]  # fmt: skip
    for file in report.files:
        assert Path(file.path).stat().st_size == file.size_bytes
        assert len(file.sha256) == 64
        assert file.agreement is None
        assert "/nowhere/python does not start" in file.not_verified
        assert "pip install" in file.not_verified
    assert report.next_step == f"llama-cli -m {out}/demo.F16.gguf"
    assert hidden(tmp_path) == []


KILLS = """
import os, signal, sys
def watch(event, arguments):
    if event in ("os.rename", "shutil.rmtree"):
        if str(arguments[1 if event == "os.rename" else 0]) == os.environ.get("KILL_BEFORE"):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


def kill_before(place: Path, tmp_path: Path, order: ExportOrder) -> None:
    """A real process that is killed before it renames something to `place`, or removes that."""
    (tmp_path / "kills").mkdir(exist_ok=True)
    (tmp_path / "kills" / "sitecustomize.py").write_text(KILLS)
    killing = {"PYTHONPATH": f"{tmp_path / 'kills'}:{ROOT}", "KILL_BEFORE": str(place)}
    assert process(order, tmp_path, **killing)[0] == -signal.SIGKILL


@pytest.mark.parametrize("destination", ["gguf", "hf"])
def test_a_kill_leaves_nothing_under_the_final_name_and_the_same_order_goes_on(
    destination: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    order = order_for(out, destination)
    kill_before(out, tmp_path, order)
    assert not out.exists()
    made = {path.name: path.stat().st_ino for path in (tmp_path / ".out.exporting" / "result").iterdir()}
    assert made
    code, report, error = work(order, tmp_path)
    assert code == 0, error
    assert report is not None
    kept = [name for name in made if name.endswith(("gguf", "safetensors"))]
    assert kept
    assert all((out / name).stat().st_ino == made[name] for name in kept), "made once"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("one_file", [False, True])
def test_a_kill_at_either_rename_or_after_them_keeps_one_export_and_can_be_repeated(
    one_file: bool, tmp_path: Path
) -> None:
    out, staged = tmp_path / "out.gguf", tmp_path / ".out.gguf.exporting"
    old = order_for(out, one_file=one_file, types=("f16",))
    assert work(old, tmp_path)[0] == 0
    made = sha256_of(out if one_file else out / "demo.F16.gguf")
    order = order_for(out, one_file=one_file, force=True)

    kill_before(out, tmp_path, order)
    assert not out.exists()
    code, _, error = work(order_for(out, one_file=one_file), tmp_path)
    assert (code, error["code"]) == (2, "export.exists"), "not lost: it is back before anything else"
    assert sha256_of(out if one_file else out / "demo.F16.gguf") == made

    kill_before(staged, tmp_path, order)
    new = out if one_file else out / "demo.Q8_0.gguf"
    assert new.is_file()
    assert (staged / "replaced").exists()
    code, _, error = work(order, tmp_path)
    assert code == 0, error
    assert new.is_file()
    assert hidden(tmp_path) == []


def test_what_appeared_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging_of(order_for(out)) as staging:
        staging.result.mkdir()
        (staging.result / "made").write_text("x")
        out.mkdir()
        (out / "mine").write_text("mine")
        with pytest.raises(EngineError) as caught:
            finish(staging)
    assert caught.value.code == "export.exists"
    assert (out / "mine").read_text() == "mine"
    assert (staging.result / "made").is_file()


@pytest.mark.parametrize("place", ["models", "models/hf", "."])
def test_the_place_of_what_is_read_is_never_replaced(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "models" / "hf"
    shutil.copytree(demo_model_dir(), source)
    before = sorted(path.name for path in source.iterdir())
    code, _, error = work(order_for(tmp_path / place, source=str(source), force=True), tmp_path)
    assert (code, error["code"]) == (2, "export.out")
    assert sorted(path.name for path in source.iterdir()) == before


def test_a_full_disk_is_said_and_what_was_whole_is_kept(tmp_path: Path) -> None:
    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))

    out = tmp_path / "out"
    order = order_for(out, types=("q8_0", "f32"))
    code, error = process(order, tmp_path, small)
    assert code != 0
    assert error["code"] == "disk.full", error
    assert not out.exists()
    first = (tmp_path / ".out.exporting/result/demo.Q8_0.gguf").stat().st_ino
    assert work(order, tmp_path)[0] == 0
    assert (out / "demo.Q8_0.gguf").stat().st_ino == first


def test_an_existing_target_stays_unless_it_is_forced_and_of_an_export(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert work(order_for(out, types=("f16",)), tmp_path)[0] == 0
    code, _, error = work(order_for(out), tmp_path)
    assert (code, error["code"]) == (2, "export.exists")
    assert "--force" in error["next_step"]
    assert (out / "demo.F16.gguf").is_file()
    assert work(order_for(out, force=True), tmp_path)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["demo.Q8_0.gguf", RECORD]
    (out / "mine").write_text("x")
    for foreign, one_file, why in ((out, False, "mine"), (out, True, "a folder"), (out / "mine", True, "no GGUF")):
        code, _, error = work(order_for(foreign, force=True, one_file=one_file), tmp_path)
        assert (code, error["code"]) == (2, "export.foreign")
        assert why in error["cause"]
    assert (out / "mine").read_text() == "x"
    (out / RECORD).unlink()
    code, _, error = work(order_for(out, force=True), tmp_path)
    assert (code, error["code"]) == (2, "export.foreign")


def test_one_type_may_be_one_file(tmp_path: Path) -> None:
    out = tmp_path / "one.gguf"
    code, report, _ = work(order_for(out, one_file=True), tmp_path)
    assert code == 0
    assert report is not None
    assert report.files[0].path == str(out)
    assert out.read_bytes()[:4] == b"GGUF"


def test_what_another_order_or_another_source_left_is_not_taken(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_model_dir(), source)
    order = order_for(tmp_path / "out", source=str(source))
    for changed in (order, msgspec.structs.replace(order, types=("f16",)), order):
        with staging_of(changed) as staging:
            assert not staging.result.exists(), "begun anew"
            staging.result.mkdir()
            (staging.result / "made").write_text("x")
    with staging_of(order) as staging:
        assert staging.result.exists(), "the same order goes on"
    os.utime(source / "config.json", (1, 1))
    with staging_of(order) as staging:
        assert not staging.result.exists(), "the source was touched"


def test_two_at_once_do_not_write_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.export.staging._PATIENCE_SECONDS", 0.0)
    order = order_for(tmp_path / "out")
    with staging_of(order):
        code, _, error = work(order, tmp_path)
        assert (code, error["code"]) == (2, "export.busy")


ASKER = """
import sys
from pathlib import Path
from engine.surgery.helpers import run_module
run_module("engine.export.work", sys.argv[1:3], Path(sys.argv[3]), "exporting", lambda _: None)
"""


def test_when_the_asker_is_killed_the_export_and_what_it_started_end(tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text(
        f"#!/bin/sh\necho $$ $PPID > {tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids\nexec sleep 600"
    )
    slow.chmod(0o755)
    (tmp_path / "order.json").write_bytes(msgspec.json.encode(order_for(tmp_path / "out", types=("q4_k_m",))))
    words = [str(tmp_path / name) for name in ("order.json", "report.json", "log")]
    settings = environment(GGUF_PYTHON=str(slow))
    with subprocess.Popen([sys.executable, "-c", ASKER, *words], env=settings, cwd=ROOT) as asker:
        wait_for((tmp_path / "pids").exists, "it works")
        numbers = [int(word) for word in (tmp_path / "pids").read_text().split()]
        asker.kill()
    wait_for(lambda: not any(is_alive(number) for number in numbers), "both are gone")


def is_alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # gone before, or while it was read
        return False
    return state != "Z"


def test_small_types_without_a_quantiser_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    code, _, error = work(order_for(tmp_path / "out", types=("f16", "q4_k_m")), tmp_path)
    assert (code, error["code"]) == (2, "export.no_quantiser")
    assert "q8_0" in error["next_step"]
    assert hidden(tmp_path) == []


def test_an_unknown_architecture_is_refused_with_a_way_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_model_dir(), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "olmo2"}))
    code, _, error = work(order_for(tmp_path / "out", source=str(source)), tmp_path)
    assert (code, error["code"]) == (2, "export.family")
    assert "export hf" in error["next_step"]
    assert hidden(tmp_path) == [], "refused before anything is begun"


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_model_dir(), source)
    (source / "tokenizer.json").unlink()
    for destination in ("gguf", "hf"):
        code, _, error = work(order_for(tmp_path / "out", destination, source=str(source)), tmp_path)
        assert (code, error["code"]) == (2, "model.no_tokenizer")
        assert hidden(tmp_path) == []


def test_the_room_for_everything_is_asked_for_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_for(tmp_path / "out", types=("f32", "f16", "q8_0"))
    needed = check_source(order)
    assert work(order, tmp_path)[0] == 0
    written = sum((tmp_path / "out" / f"demo.{kind}.gguf").stat().st_size for kind in ("F32", "F16", "Q8_0"))
    assert needed == pytest.approx(written, rel=0.02)
    free = shutil.disk_usage(tmp_path)._replace(free=needed - 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    code, _, error = work(msgspec.structs.replace(order, out=str(tmp_path / "more")), tmp_path)
    assert (code, error["code"]) == (4, "disk.full")
    assert "are missing" in error["cause"]
    assert hidden(tmp_path) == []


def test_flags_of_a_file_are_told_by_the_attempt_that_finds_it_made(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_model_dir(), source)
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}
    (source / "config.json").write_text(json.dumps(config))
    order = order_for(tmp_path / "out", source=str(source))
    kill_before(tmp_path / "out", tmp_path, order)
    notes = tmp_path / ".out.exporting" / "work" / "demo.Q8_0.gguf.flags"
    told = notes.read_text().splitlines()
    assert told
    code, report, error = work(order, tmp_path)
    assert code == 0, error
    assert report is not None
    assert set(told) <= set(report.flags)


def test_ollama_is_told_where_it_is_installed(tmp_path: Path) -> None:
    """A small program in Ollama's place writes down how it was called."""
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    program.chmod(0o755)
    settings = {"PATH": f"{program.parent}:{os.environ['PATH']}", **NO_RUNTIME}
    done = cli("export", "ollama", "demo", "--no-verify", cwd=tmp_path, env=settings)
    assert done.code == 0, done.text
    modelfile = tmp_path / "demo-ollama" / "Modelfile"
    assert (tmp_path / "called").read_text().split() == ["create", "demo", "-f", str(modelfile)]
    assert "ollama run demo" in done.out
    assert "FROM ./demo.Q8_0.gguf" in modelfile.read_text()
    assert "TEMPLATE" in modelfile.read_text()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/both\n')
    sizes = ("--type", "q8_0", "--type", "f16", "--out", "two", "--json")
    two = cli("export", "ollama", "demo", "--no-verify", *sizes, cwd=tmp_path, env=settings)
    assert two.json["created"] == ["demo:f16", "demo:q8_0"]
    assert [line.split()[1] for line in (tmp_path / "both").read_text().splitlines()] == two.json["created"]
    assert two.json["next_step"].count("ollama create") == 2
    program.write_text("#!/bin/sh\necho 'could not connect' >&2\nexit 1\n")
    failed = cli("export", "ollama", "demo", "--no-verify", "--force", "--json", cwd=tmp_path, env=settings)
    assert failed.code == 5
    assert failed.json["error"]["code"] == "export.ollama"
    assert "could not connect" in failed.json["error"]["cause"]
    assert modelfile.is_file(), "what is written stays"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gguf", "demo", "--push", "a/b"], "--push is for hf"),
        (["hf", "demo", "--type", "q8_0"], "--type is for gguf, ollama"),
        (["sky", "spec.toml", "--no-verify"], "--no-verify is for"),
        (["hf", "demo", "--bucket", "s3://x"], "--bucket is for sky, dstack"),
        (["hf", "demo", "--private"], "--private goes with --push"),
        (["sky"], "needs a spec.toml"),
        (["gguf", "demo", "--type", "q3_x"], "no GGUF type 'q3_x'"),
        (["gguf", "demo", "--adapter"], "a whole model, not an adapter"),
        (["gguf", "demo", "-o", "x.gguf", "--type", "f16", "--type", "q8_0"], "one file"),
        (["gguf", "no-such-model"], "no-such-model"),
        (["onnx", "demo"], "onnx"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_flag(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_sizes_of_all_types_are_told_without_writing(tmp_path: Path) -> None:
    done = cli("export", "gguf", "demo", "--sizes", "--json", cwd=tmp_path)
    sizes = done.json["sizes"]
    assert list(sizes) == ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    # Made by llama.cpp of the demo, whose rows of 192 take larger blocks: `make test-gguf` holds them to each other.
    for kind, made in {"f16": 7_277_408, "q8_0": 3_890_528, "q6_k": 3_700_064, "q4_k_m": 2_644_832}.items():
        assert sizes[kind] == pytest.approx(made, rel=0.03)
    assert list(tmp_path.iterdir()) == []


def test_orders_are_checked_and_names_made_harmless(tmp_path: Path) -> None:
    assert file_name("demo: my run / 2") == "demo-my-run-2"
    assert file_name("../..") == "model"
    assert largest_first(["Q4_K_M", "f16", "q8_0", "f16"]) == ("f16", "q8_0", "q4_k_m")
    with pytest.raises(EngineError) as caught:
        check_order(order_for(tmp_path / "x", types=("q9",)))
    assert caught.value.code == "export.type"


def demo_adapter(folder: Path) -> Path:
    """A peft folder on the demo's model."""
    base = json.loads((demo_model_dir() / "config.json").read_text())
    width, module = base["hidden_size"], "model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": np.ones((2, width)), f"{module}.lora_B.weight": np.ones((width, 2))}
    return write_adapter(folder, factors, base=demo_model_dir())


def test_the_untuned_base_of_an_adapter_has_another_name_than_the_merged_model(tmp_path: Path) -> None:
    adapter = demo_adapter(tmp_path / "adapter")
    fields: dict[str, Any] = {"source": str(adapter), "base": str(demo_model_dir())}
    code, merged, error = work(order_for(tmp_path / "merged", **fields), tmp_path)
    assert code == 0, error
    code, alone, error = work(order_for(tmp_path / "alone", "ollama", adapter=True, **fields), tmp_path)
    assert code == 0, error
    assert merged is not None
    assert alone is not None
    assert [Path(file.path).name for file in merged.files] == ["demo.Q8_0.gguf"]
    names = [Path(file.path).name for file in alone.files]
    assert names == ["Modelfile", "demo.adapter.gguf", "demo.base.Q8_0.gguf"]
    assert "FROM ./demo.base.Q8_0.gguf\nADAPTER ./demo.adapter.gguf" in (tmp_path / "alone/Modelfile").read_text()
    named = GGUFReader(tmp_path / "alone" / "demo.base.Q8_0.gguf").fields["general.name"].contents()
    assert named == "demo.base"


def test_of_a_base_that_was_not_compared_nothing_is_claimed(tmp_path: Path) -> None:
    """The figures of one size, and of the adapter, say nothing of another size."""
    order = order_for(tmp_path / "out", "ollama", adapter=True, base=str(demo_model_dir()), types=("f16", "q4_k_m"))
    proven = msgspec.structs.replace(agreement(), ended=4, reference_ended=4)
    with staging_of(order) as staging:
        staging.result.mkdir()
        for kind, compared in (("f16", proven), ("q4_k_m", None)):
            files = [
                ExportedFile(path="/x/demo.adapter.gguf", size_bytes=1, kind="adapter", agreement=proven),
                ExportedFile(path="/x/demo.gguf", size_bytes=1, kind=kind, agreement=compared),
            ]
            write_modelfiles(
                GgufWork(order, staging, demo_model_dir(), None, lambda *_: None, files=files), Licence(UNKNOWN, "")
            )
            said = (staging.result / f"Modelfile.{kind.upper()}").read_text()
            assert ("Stop tokens ended 4 of 4 answers" in said) is (compared is not None)


def test_an_adapter_with_a_tokenizer_of_its_own_becomes_a_file(tmp_path: Path) -> None:
    adapter = demo_adapter(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(demo_model_dir() / name, adapter / name)
    order = order_for(tmp_path / "out", source=str(adapter), base=str(demo_model_dir()))
    code, report, error = work(order, tmp_path)
    assert code == 0, error
    assert report is not None
    assert Path(report.files[0].path).is_file()
