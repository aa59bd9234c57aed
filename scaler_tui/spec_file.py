"""Writing a spec to a file the user named: never over something, and with file names that hold where it lies.

Owns those two rules, and the file through which a subcommand is given a spec. The text of a spec is the engine's
(`engine.jobs.spec_toml`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs.spec_paths import Named, NamedKind, map_files

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec


def write_spec(spec: JobSpec, target: Path) -> None:
    """Write `spec`, whose file names are relative to the current folder, as a new file. Raises EngineError."""
    from engine.jobs.spec_toml import dump_spec

    text = dump_spec(relative_to(spec, target.parent))
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise EngineError(
            "file.exists",
            f"{target} exists already and is left as it is.",
            next_step="Choose another name, or remove that file first.",
        ) from None
    except (OSError, ValueError) as error:
        raise EngineError(
            "file.unwritable",
            f"Cannot write {target}.",
            cause=(error.strerror or "" if isinstance(error, OSError) else "") or str(error),
            next_step="Choose a folder you can write to.",
        ) from error


@contextlib.contextmanager
def temporary_spec(spec: JobSpec, folder: Path) -> Iterator[Path]:
    """`spec`, whose file names are relative to `folder`, as a file for a subcommand; gone afterwards."""
    from engine.jobs.spec_toml import dump_spec, with_absolute_paths

    with tempfile.TemporaryDirectory(prefix="scaler-wizard-") as scratch:
        path = Path(scratch) / "spec.toml"
        path.write_text(dump_spec(with_absolute_paths(spec, folder)), encoding="utf-8")
        yield path


def relative_to(spec: JobSpec, folder: Path) -> JobSpec:
    """A spec that names the same files from `folder`; names given as absolute stay so."""

    def moved(named: Named) -> str:
        is_model = named.kind is NamedKind.MODEL
        if Path(named.value).expanduser().is_absolute() or (is_model and not Path(named.value).is_dir()):
            return named.value
        name = os.path.relpath(named.value, folder)
        # A model's folder is not to be taken for a hub id.
        return f"./{name}" if is_model and not name.startswith((".", "/", "~")) else name

    return map_files(spec, moved)
