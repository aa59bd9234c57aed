"""The extended model's folder: the source's weights under a new config.

Owns which files it holds and how weights get there without being read. Must not know methods, measuring, or torch.
No tensor changes when a window grows, so weights are linked: the folder costs kilobytes. A hard link shares the bytes
with the source; whoever edits a weight file in place (nobody should) edits both, which is what `links = "copy"` is for.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from engine.context.export import config_after
from engine.context.plan import ContextPlan
from engine.errors import EngineError, ExitCode
from engine.jobs.layout import DISK_FULL_ERRNOS, fsync_directory, write_atomic
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.headers import INDEX_NAME, SINGLE_NAME, read_headers
from engine.surgery.carry import carry_over
from engine.units import format_bytes

Links = Literal["hard", "copy", "symbolic"]

_NO_LINK_ERRNOS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES})
"""Another file system, one without hard links, too many links, or a kernel that protects other people's files."""
_SPARE_BYTES = 16 << 20
_LENGTH_KEYS = {"tokenizer_config.json": "model_max_length", "generation_config.json": "max_length"}
"""Where companions repeat the window: a tokenizer that warns at, a generation that ends at the old one."""


def write_extended(source: Path, out: Path, plan: ContextPlan, *, links: Links = "hard") -> None:
    """Write the model of `source` with `plan`'s config to the new folder `out`, which appears whole or not at all.

    Weights are hard-linked where the file system allows it, else copied ("hard"); always copied ("copy"); or symbolic
    links to the source's files ("symbolic", for folders that nobody keeps). Tokenizer, chat template, generation
    settings and licences are copied, README.md as SOURCE_README.md. The parent folder is made where it is missing.

    Raises EngineError `extension.out_exists`, `disk.full`, `safetensors.*`, `model.config_damaged`, `context.*`.
    """
    if out.exists() or out.is_symlink():
        raise EngineError(
            "extension.out_exists",
            f"{out} exists.",
            cause="Nothing is overwritten.",
            next_step="Choose another name, or remove it first.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _fill(source, partial, plan, links)
        fsync_directory(partial)
        partial.rename(out)
        fsync_directory(out.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
            raise disk_full(out.parent, error.strerror or str(error)) from error
        raise


def weight_files(source: Path) -> tuple[tuple[Path, str], ...]:
    """(file, name in the output) of everything that holds weights, the index included. Raises EngineError
    `safetensors.*`."""
    headers = read_headers(source)
    index = source / INDEX_NAME
    if index.exists():
        return (*((path, path.name) for path in headers.files), (index, INDEX_NAME))
    return ((headers.files[0], SINGLE_NAME),)  # under the name that loaders look for


def copied_bytes(source: Path, out: Path, links: Links) -> int:
    """Bytes that writing `out` takes on its disk, small files aside: 0 where weights can be linked."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    same_disk = parent.stat().st_dev == source.resolve().stat().st_dev
    if links == "symbolic" or (links == "hard" and same_disk):
        return 0
    return sum(path.stat().st_size for path, _ in weight_files(source))


def disk_full(folder: Path, cause: str) -> EngineError:
    """The disk filled up on the way."""
    return EngineError(
        "disk.full",
        f"There is no room left to write in {folder}.",
        cause=cause,
        next_step="Free some space, or choose a folder on another disk; what was half written is removed.",
        exit_code=ExitCode.RUN_FAILED,
    )


def _fill(source: Path, folder: Path, plan: ContextPlan, links: Links) -> None:
    config = config_after(
        read_json_object(source / CONFIG_NAME, code="model.config_damaged", what="a model config"), plan
    )
    config.pop("auto_map", None)  # names Python files that stay behind; the built-in class is used
    write_atomic(folder / CONFIG_NAME, _json_bytes(config))
    for name in carry_over(source, folder):
        if key := _LENGTH_KEYS.get(name):
            _raise_length(folder / name, key, plan.target)
    place = _PLACERS[links]
    needed = copied_bytes(source, folder, links)
    if needed:
        _require_room(folder, needed)
    for path, name in weight_files(source):
        place(path.resolve(), folder / name)


def _raise_length(path: Path, key: str, target: int) -> None:
    """A length written in a companion is not to be below the new window. Huge ones mean "none" and stay."""
    try:
        tree: Any = json.loads(path.read_bytes())
    except ValueError:
        return  # not ours to judge; loaders will say so
    length = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(length, int) and not isinstance(length, bool) and 20 < length < target:
        write_atomic(path, _json_bytes({**tree, key: target}))


def _json_bytes(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()


def _require_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise EngineError(
            "disk.full",
            f"The copy of the weights takes {format_bytes(needed_bytes)}, and {format_bytes(free)} are free.",
            cause="Weights are copied where they cannot be linked: on another disk, or with --copy.",
            next_step="Free some space, or choose a folder on the disk that holds the source.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


def _hard(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK_ERRNOS:
            raise
        _require_room(target.parent, source.stat().st_size)
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _symbolic(source: Path, target: Path) -> None:
    target.symlink_to(source)


_PLACERS: dict[Links, Callable[[Path, Path], None]] = {"hard": _hard, "copy": _copy, "symbolic": _symbolic}
