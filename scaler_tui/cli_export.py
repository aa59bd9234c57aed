"""The grammar of `export`.

Owns its flags, and which of them go with which target. Must not know what they lead to (`scaler_tui.commands.export`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from engine.errors import EngineError
from scaler_tui.cli_flags import json_flag, machine_flag

JOB_FILES = ("sky", "dstack")
MODELS = ("hf", "gguf", "ollama")
_GGUF = ("gguf", "ollama")
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "type": _GGUF, "adapter": _GGUF, "imatrix": _GGUF, "sizes": _GGUF, "no_create": ("ollama",),
    "push": ("hf",), "private": ("hf",), "no_verify": MODELS, "keep_failed": MODELS, "base": MODELS,
    "bucket": JOB_FILES, "volume": JOB_FILES, "on_demand": JOB_FILES, "budget": JOB_FILES, "hours": JOB_FILES,
}  # fmt: skip
"""Flags that mean something to some targets only."""


def add_export(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Models in the form of other programs, and job files for rented machines."""
    export = add(
        "export",
        "a model for transformers, llama.cpp or Ollama, verified; or a job file for SkyPilot or dstack",
        "hf, gguf and ollama take a run, a model's folder or an adapter's, and write what the other program reads; "
        "where it is installed both are given the same prompts and the figures are shown. What fails that comparison "
        "gets its name only with --keep-failed (exit code 5). Killed, the same command goes on. sky and dstack take a "
        "spec.toml, or a run's, and write OUT with a folder of the same name beside it: the spec and this program.",
    )
    export.add_argument("tool", metavar="TARGET", choices=[*MODELS, *JOB_FILES], help="hf, gguf, ollama, sky, dstack")
    export.add_argument(
        "spec", metavar="SOURCE", nargs="?", type=Path, default=None,
        help="a run (the latest when left out), a model's or an adapter's folder; sky, dstack: a spec.toml or a run",
    )  # fmt: skip
    export.add_argument(
        "--out", "-o", metavar="PATH", type=Path, default=None, help="the folder, or the job file; one type: FILE.gguf"
    )
    export.add_argument("--force", action="store_true", help="replace OUT; of a model only what an export made")
    export.add_argument("--name", default="", help="of the files or the job; the run's or folder's when left out")
    _add_model_flags(export)
    _add_job_flags(export)
    machine_flag(export)
    json_flag(export)


def _add_model_flags(export: argparse.ArgumentParser) -> None:
    models = export.add_argument_group("hf, gguf, ollama (a run's export goes into its own folder, output/export)")
    models.add_argument(
        "--type", action="append", default=[], metavar="TYPE",
        help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m; may be repeated (q8_0)",
    )  # fmt: skip
    models.add_argument("--sizes", action="store_true", help="say how large each type would be, and write nothing")
    models.add_argument("--adapter", action="store_true", help="the adapter by itself; with --type its base beside it")
    models.add_argument("--imatrix", metavar="FILE", type=Path, default=None, help="importance matrix for k-quants")
    models.add_argument("--base", metavar="MODEL", default="", help="of an adapter that does not name its own")
    models.add_argument("--no-verify", action="store_true", help="compare nothing")
    models.add_argument("--keep-failed", action="store_true", help="give it its name though the comparison failed")
    models.add_argument("--no-create", action="store_true", help="ollama: print the command instead of running it")
    models.add_argument(
        "--push", metavar="OWNER/NAME", default="",
        help="hf: upload the folder to the hub; the token is HF_TOKEN's or the keyring's",
    )  # fmt: skip
    models.add_argument("--private", action="store_true", help="hf: of a repository that --push makes")


def _add_job_flags(export: argparse.ArgumentParser) -> None:
    jobs = export.add_argument_group("sky, dstack (the job goes on by itself when a spot machine is taken away)")
    jobs.add_argument(
        "--bucket", metavar="URL", default="", help="s3://, gs:// or r2:// bucket that keeps what is needed to go on"
    )
    jobs.add_argument("--volume", metavar="NAME", default="", help="dstack: a network volume instead of a bucket")
    jobs.add_argument("--on-demand", action="store_true", help="no spot machines")
    jobs.add_argument("--budget", metavar="USD", type=float, default=0.0, help="checkpoint and stop at this cost")
    jobs.add_argument("--hours", metavar="H", type=float, default=0.0, help="checkpoint and stop after so many hours")


def check_flags(arguments: argparse.Namespace) -> None:
    """Raises EngineError `usage` for flags of other targets, and for what is missing."""
    for name, targets in _ONLY_FOR.items():
        if getattr(arguments, name) and arguments.tool not in targets:
            flag = "--" + name.replace("_", "-")
            raise EngineError(
                "usage",
                f"{flag} is for {', '.join(targets)}, not for {arguments.tool}.",
                next_step="Leave it out. See scaler-wizard export --help.",
            )
    if arguments.private and not arguments.push:
        raise EngineError("usage", "--private goes with --push.", next_step="Add --push OWNER/NAME, or leave it out.")
    if arguments.tool in JOB_FILES and arguments.spec is None:
        raise EngineError(
            "usage", f"export {arguments.tool} needs a spec.toml or a run.", next_step="Write one: plan -o FILE"
        )
