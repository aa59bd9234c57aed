"""Job files for SkyPilot and dstack: what those tools accept, what is uploaded, and never over something."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from engine.jobs import elsewhere
from engine.jobs.spec_paths import named_files
from engine.jobs.spec_toml import load_spec, with_absolute_paths
from engine.jobs.store import create_run
from engine.remote.rent import dstack_name, sky_names
from engine.resources import demo_model_dir
from scaler_tui.cli import main
from tests.support.cli import ROOT

SCHEMAS = ROOT / "tests/data/schemas"
SPEC = """\
task = "lora"
name = "Ship's log!"
[model]
source = "my model"
[data]
train = "rows/chat.jsonl"
heldout = ""
base_text = "general"
"""
STREAM = """\
task = "full"
name = "long text"
[training]
max_steps = 10
[[sources]]
name = "web"
path = "text/*.txt"
[[sources]]
name = "code"
path = "folder"
[[suites]]
name = "own"
path = "suite.txt"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with specs and the files they name; it is the current one."""
    folder = tmp_path / "place"
    (folder / "rows").mkdir(parents=True)
    for name in ("text", "folder"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("Some words to read, again and again.\n" * 200)
    (folder / "suite.txt").write_text("Other words.\n" * 50)
    shutil.copytree(demo_model_dir(), folder / "my model")
    shutil.copy(ROOT / "tests/data/datasets/chat.jsonl", folder / "rows" / "chat.jsonl")
    (folder / "spec.toml").write_text(SPEC)
    (folder / "stream.toml").write_text(STREAM)
    monkeypatch.chdir(folder)
    return folder


def exported(*words: str, code: int = 0) -> None:
    assert main(["export", *words]) == code


def checked(tool: str, document: dict[str, Any]) -> None:
    """Against the schemas that were recorded from the tools themselves."""
    schemas = json.loads((SCHEMAS / f"{tool}.json").read_text())
    Draft202012Validator(schemas["task"]).validate(document)
    if tool == "skypilot":
        Draft202012Validator(schemas["resources"]).validate(document["resources"])
        for mount in document["file_mounts"].values():
            if isinstance(mount, dict):
                Draft202012Validator(schemas["storage"]).validate(mount)


def test_what_sky_gets_is_a_task_with_recovery_bucket_and_a_price_limit(place: Path) -> None:
    exported(
        "sky", "spec.toml", "--budget", "12", "--hours", "5", "--bucket", "s3://some-bucket/runs/a", "-o", "j.yaml"
    )
    job = yaml.safe_load(Path("j.yaml").read_text())
    checked("skypilot", job)
    assert job["name"] == "ship-s-log"
    assert job["resources"]["use_spot"] is True
    assert job["resources"]["max_hourly_cost"] > 0
    assert job["resources"]["job_recovery"] == {"max_restarts_on_errors": 3}
    kept = job["file_mounts"].pop("~/scaler/kept")
    assert kept == {"source": "s3://some-bucket", "store": "S3", "mode": "MOUNT"}
    assert all(Path(local).exists() for local in job["file_mounts"].values())
    assert '--keep "$HOME"/scaler/kept/runs/a' in job["run"]
    spec = load_spec(place / "j.files" / "spec.toml")
    assert (spec.cost.budget_usd, spec.stop.hours) == (12, 5)
    assert 0 < spec.cost.usd_per_hour <= job["resources"]["max_hourly_cost"]
    assert {path.name for path in (place / "j.files").iterdir()} >= {"spec.toml", "constraints.txt"}


@pytest.mark.parametrize("word", ["latest", "id", "folder"])
def test_a_run_stands_for_the_spec_that_it_was_started_with(place: Path, word: str) -> None:
    run_dir = create_run(load_spec(place / "spec.toml"), base=place)
    named = {"latest": "latest", "id": run_dir.name, "folder": str(run_dir)}[word]
    exported("sky", named, "-o", "run.yaml", "--gpu", "RTX 4090")
    exported("sky", "spec.toml", "-o", "spec.yaml", "--gpu", "RTX 4090")
    again, spec = (load_spec(Path(name) / "spec.toml") for name in ("run.files", "spec.files"))
    assert again == spec
    assert (place / "run.files/inputs/1").is_dir()


def test_a_mirror_of_a_run_elsewhere_and_an_unknown_run_are_no_specs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = create_run(load_spec(place / "spec.toml"), base=place)
    record = elsewhere.RemoteRecord(host="h", directory="/d", python="python3", program=("scaler-wizard",))
    (run_dir / elsewhere.REMOTE).write_bytes(msgspec.json.encode(record))
    exported("sky", "latest", "--json", code=2)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "run.elsewhere"
    exported("dstack", "no-such-run", "--json", code=2)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "run.unknown"
    assert not list(place.glob("*.yaml"))


def test_what_dstack_gets_is_a_task_that_is_retried_after_an_interruption(place: Path) -> None:
    exported("dstack", "spec.toml", "--bucket", "s3://some-bucket/runs/a", "--gpu", "A100 80GB", "--hours", "5")
    job = yaml.safe_load(Path("ship-s-log.dstack.yaml").read_text())
    checked("dstack", job)
    assert job["type"] == "task"
    assert job["retry"]["on_events"] == ["no-capacity", "interruption", "error"]
    assert job["spot_policy"] == "spot"
    assert job["resources"]["gpu"] == {"name": "A100", "memory": "80GB", "count": 1}
    assert (job["privileged"], job["max_duration"]) == (True, "7h")
    assert "AWS_SECRET_ACCESS_KEY" in job["env"]
    assert all(Path(entry["local_path"]).exists() for entry in job["files"])
    exported("dstack", "spec.toml", "--volume", "kept", "--on-demand", "-o", "volume.yaml")
    job = yaml.safe_load(Path("volume.yaml").read_text())
    checked("dstack", job)
    assert job["volumes"] == [{"name": "kept", "path": "/scaler/kept"}]
    assert (job["spot_policy"], "privileged" in job) == ("on-demand", False)


@pytest.mark.parametrize("name", ["spec.toml", "stream.toml"])
def test_every_file_the_spec_names_is_uploaded_to_where_the_spec_then_looks(place: Path, name: str) -> None:
    exported("sky", name, "-o", "j.yaml", "--gpu", "RTX 4090")
    job = yaml.safe_load(Path("j.yaml").read_text())
    there = place / "there"
    for target, local in job["file_mounts"].items():
        if isinstance(local, str):
            path = there / target.removeprefix("~/scaler/")
            path.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if Path(local).is_dir() else shutil.copy)(local, path)
    before = named_files(with_absolute_paths(load_spec(place / name), place))
    after = named_files(with_absolute_paths(load_spec(there / "job" / "spec.toml"), there / "job"))
    assert [named.key for named in before] == [named.key for named in after]
    for old, new in zip(before, after, strict=True):
        assert new.value.startswith(str(there))
        found = sorted(Path(new.value).parent.glob(Path(new.value).name))
        assert [path.name for path in found if path.is_file()] == [
            path.name for path in sorted(Path(old.value).parent.glob(Path(old.value).name)) if path.is_file()
        ]
        assert found


@pytest.mark.parametrize("tool", ["sky", "dstack"])
def test_only_the_files_that_were_found_are_uploaded(place: Path, tool: str) -> None:
    secrets = [
        ".env", ".ssh/id_ed25519", "notes.md", "secrets.json", "my model/.git/config", "my model/pytorch_model.bin",
        "folder/.env", "text/keys.pem", "text/.a.txt", "rows/other.jsonl", "own/secrets.json", "own/other.yaml",
    ]  # fmt: skip
    for name in (*secrets, "alone.txt", "folder/.deep/a.txt", "folder/deep/b.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("Some words to read.\n" * 50)
    (place / "own" / "task.yaml").write_text(
        "include: base.yaml\ntask: own\ndataset_kwargs: {data_files: {test: 'rows_*.jsonl'}}\n"
        "doc_to_text: !function helps.text\n"
    )
    (place / "own" / "base.yaml").write_text("output_type: multiple_choice\n")
    (place / "own" / "helps.py").write_text("import deeper\n")
    for name in ("deeper.py", "rows_1.jsonl", "unnamed.py", "config.jsonl"):
        (place / "own" / name).write_text("")
    (place / "spec.toml").write_text(
        STREAM + '[[sources]]\nname = "top"\npath = "*.txt"\n[model]\nsource = "my model"\n'
        '[evaluation]\ntasks = ["own/task.yaml"]\n'
    )
    terms = [] if tool == "sky" else ["--volume", "v"]
    exported(tool, "spec.toml", "-o", "j.yaml", "--gpu", "RTX 4090", *terms)
    job = yaml.safe_load(Path("j.yaml").read_text())
    mounts = job["file_mounts"] if tool == "sky" else {one["path"]: one["local_path"] for one in job["files"]}
    assert [Path(local).resolve() for local in mounts.values() if isinstance(local, str)] == [place / "j.files"]
    staged: dict[str, set[str]] = {}
    for path in (place / "j.files" / "inputs").rglob("*"):
        if path.is_file():
            number, _, name = path.relative_to(place / "j.files" / "inputs").as_posix().partition("/")
            staged.setdefault(number, set()).add(name)
    model = {path.name for path in demo_model_dir().iterdir() if path.suffix in (".safetensors", ".json", ".jinja")}
    assert model <= staged.pop("1")
    assert staged == {
        "2": {"a.txt"},
        "3": {"a.txt", "deep/b.txt"},
        "4": {"alone.txt", "suite.txt"},
        "5": {"suite.txt"},
        "6": {"task.yaml", "base.yaml", "helps.py", "deeper.py", "rows_1.jsonl"},
    }
    for name in secrets:
        assert not [one for one in (place / "j.files").rglob("*") if one.is_file() and one.samefile(place / name)]


def test_a_token_for_the_hub_is_named_where_it_may_be_needed_and_never_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (place / "hub.toml").write_text(STREAM.replace('path = "folder"', 'path = "hub:owner/name"'))
    for name, named in (("hub.toml", True), ("stream.toml", False)):
        exported("dstack", name, "--volume", "v", "-o", "d.yaml", "--gpu", "RTX 4090", "--force")
        job = yaml.safe_load(Path("d.yaml").read_text())
        checked("dstack", job)
        assert ("HF_TOKEN" in job["env"]) is named
        exported("sky", name, "-o", "s.yaml", "--gpu", "RTX 4090", "--force")
        assert ("--secret HF_TOKEN" in Path("s.yaml").read_text()) is named
        assert "hf_secret" not in Path("d.yaml").read_text() + Path("s.yaml").read_text()


@pytest.mark.parametrize("tool", ["sky", "dstack"])
def test_what_a_bucket_is_called_is_quoted_for_the_shell(
    place: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.remote import jobfile

    told = """a "b" $(touch evil) 'c'"""
    monkeypatch.setattr(jobfile, "_BUCKET", re.compile("(s3)://([a-z-]+)/(.*)"))  # whatever may get past the check
    exported(tool, "spec.toml", "--bucket", f"s3://some-bucket/{told}", "-o", "j.yaml", "--gpu", "RTX 4090")
    job = yaml.safe_load(Path("j.yaml").read_text())
    script = job["run"] if tool == "sky" else job["commands"][0]
    (line,) = [line for line in script.splitlines() if line.startswith("mkdir -p" if tool == "sky" else "rclone")]
    words = subprocess.run(
        ["sh", "-c", f"show() {{ printf '%s\\n' \"$@\"; }}; show {line}"],
        capture_output=True, text=True, check=True, env={"HOME": "/home/me"},
    ).stdout.splitlines()  # fmt: skip
    assert [word.endswith(f"/{told}") for word in words].count(True) == 1
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("words", "launch"),
    [(["sky", "spec.toml"], "sky jobs launch"), (["dstack", "spec.toml", "--bucket", "s3://kept"], "dstack apply -f")],
)
def test_the_command_that_starts_it_can_be_pasted_whatever_the_file_is_called(
    place: Path, words: list[str], launch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "my jobs").mkdir()
    exported(*words, "-o", "my jobs/j ob.yaml", "--gpu", "RTX 4090")
    assert f": {launch} 'my jobs/j ob.yaml'\n" in capsys.readouterr().err
    assert f"#   {launch} 'j ob.yaml'  start it" in (place / "my jobs/j ob.yaml").read_text()


def test_nothing_is_overwritten_unless_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported("sky", "spec.toml", "-o", "j.yaml")
    before = Path("j.yaml").read_bytes()
    exported("sky", "spec.toml", "-o", "j.yaml", "--gpu", "H100", code=2)
    assert "j.yaml exists already" in capsys.readouterr().err
    assert Path("j.yaml").read_bytes() == before
    Path("k.files").mkdir()
    exported("sky", "spec.toml", "-o", "k.yaml", code=2)
    assert not Path("k.yaml").exists()
    spec = Path("spec.toml").read_bytes()
    exported("sky", "spec.toml", "-o", "../place/spec.toml", "--force", code=2)
    assert Path("spec.toml").read_bytes() == spec
    exported("sky", "spec.toml", "-o", "j.yaml", "--gpu", "H100", "--force")
    assert "H100:1" in Path("j.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["dstack", "spec.toml"], 2, "export.nothing_kept"),
        (["sky", "spec.toml", "--volume", "v"], 2, "usage"),
        (["sky", "spec.toml", "--bucket", "ftp://x"], 2, "export.bucket"),
        (["sky", "spec.toml", "--bucket", 's3://mine/a"b$(touch x)'], 2, "export.bucket"),
        (["sky", "spec.toml", "--bucket", "s3://mine/a/../../b"], 2, "export.bucket"),
        (["dstack", "spec.toml", "--bucket", "s3://mine/a\nb"], 2, "export.bucket"),
        (["dstack", "spec.toml", "--volume", "v", "--hours", "inf"], 2, "usage"),
        (["sky", "spec.toml", "--hours", "nan"], 2, "usage"),
        (["sky", "spec.toml", "--hours=-1"], 2, "usage"),
        (["sky", "spec.toml", "--budget", "nan"], 2, "usage"),
        (["sky", "spec.toml", "--budget", "inf"], 2, "usage"),
        (["sky", "spec.toml", "--gpu", "RTX 4060 Ti 16GB"], 2, "export.card"),
        (["sky", "missing.toml"], 2, "toml.unreadable"),
        (["sky", "nodes.toml"], 2, "export.nodes"),
        (["sky", "no-file.toml"], 2, "data.not_found"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, error: str
) -> None:
    (place / "nodes.toml").write_text(SPEC + "[distributed]\nnodes = 2\n")
    (place / "no-file.toml").write_text('task = "lora"\n[data]\ntrain = "nothing.jsonl"\n')
    exported(*words, "-o", "out.yaml", "--json", code=code)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == error
    assert not Path("out.yaml").exists()
    assert not Path("out.files").exists()


def test_every_card_with_a_price_has_a_name_for_one_of_the_tools() -> None:
    from engine.errors import EngineError
    from engine.hardware.gpu_profiles import load_gpu_profiles

    def known(name: Any, card: Any) -> bool:
        try:
            return bool(name(card))
        except EngineError:
            return False

    rented = [card for card in load_gpu_profiles() if card.rent_typical_usd_per_hour]
    assert [card.name for card in rented if not (known(sky_names, card) or known(dstack_name, card))] == []
