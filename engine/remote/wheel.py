"""The program as a wheel, whatever it was started from: a checkout or an installed wheel. No build tool is needed.

Owns the wheel's bytes: equal files give equal bytes, so that its hash names what a host has. Must not know hosts. The
layout is the binary distribution format's (packaging.python.org, "Binary distribution format").
"""

from __future__ import annotations

import base64
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.errors import EngineError

PROJECT = "scaler-wizard"
PACKAGES = ("engine", "scaler_tui")

_ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "WHEEL")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DENSE = ".safetensors"
"""Does not get smaller."""
_NEVER = (".pyc", ".pyo", ".part", ".log")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory."""

    name: str
    content: bytes
    sha: str
    """SHA-256."""
    requirements: tuple[str, ...]
    """What it needs, without its extras: names as on the index."""
    needs: str
    """The same in full, with versions and extras; equal needs can share an environment."""


def pack() -> Wheel:
    """The running program as a wheel. Raises EngineError `remote.no_wheel` when its files cannot be found."""
    checkout = _ROOT / "pyproject.toml"
    files = dict(_of_checkout() if checkout.is_file() else _of_installation())
    (info,) = {name.split("/")[0] for name in files if name.split("/")[0].endswith(".dist-info")}
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: scaler-wizard\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = _zipped(files, info)
    lines = files[f"{info}/METADATA"].decode().split("\n\n")[0].splitlines()
    needs = [line.removeprefix("Requires-Dist:").strip() for line in lines if line.startswith("Requires-Dist:")]
    names = tuple(_name_of(need) for need in needs if "extra ==" not in need)
    sha = hashlib.sha256(content).hexdigest()
    return Wheel(f"{info.removesuffix('.dist-info')}-py3-none-any.whl", content, sha, names, "\n".join(sorted(needs)))


def installed_versions(names: tuple[str, ...]) -> tuple[str, ...]:
    """ "name==version" of those that are installed here, without a local label such as +cpu."""
    found = []
    for name in names:
        try:
            found.append(f"{name}=={metadata.version(name).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _zipped(files: dict[str, bytes], info: str) -> bytes:
    buffer = io.BytesIO()
    record = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda name: (name.startswith(info), name)):
            digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(files[name])}\n")
            _add(archive, name, files[name])
        _add(archive, f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]).encode())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(_DENSE) else zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


# ── from a checkout ───────────────────────────────────────────────────────────────────────────────────────────────
def _of_checkout() -> Iterator[tuple[str, bytes]]:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in PACKAGES:
        yield from _below(_ROOT / package, package)
    for source, target in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        path = _ROOT / source
        if path.is_dir():
            yield from _below(path, target)
        else:
            yield target, path.read_bytes()
    about = project["project"]
    info = f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    yield f"{info}/METADATA", _metadata(about).encode()
    scripts = "".join(f"{name} = {target}\n" for name, target in about["scripts"].items())
    yield f"{info}/entry_points.txt", f"[console_scripts]\n{scripts}".encode()
    for name in about["license-files"]:
        yield f"{info}/licenses/{name}", (_ROOT / name).read_bytes()


def _metadata(about: dict[str, Any]) -> str:
    """Core metadata 2.4: what an installer reads."""
    lines = ["Metadata-Version: 2.4", f"Name: {about['name']}", f"Version: {about['version']}"]
    lines += [f"Summary: {about['description']}", f"License-Expression: {about['license']}"]
    lines += [f"Requires-Python: {about['requires-python']}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in about["dependencies"]]
    for extra, requirements in about["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}"]
        lines += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    return "\n".join(lines) + "\n"


def _below(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not hidden and path.suffix not in _NEVER:
            yield f"{name}/{relative.as_posix()}", path.read_bytes()


# ── from an installation ──────────────────────────────────────────────────────────────────────────────────────────
def _of_installation() -> Iterator[tuple[str, bytes]]:
    """What the installer recorded, without what it added itself."""
    try:
        found = metadata.distribution(PROJECT)
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not found.files:
        raise EngineError(
            "remote.no_wheel",
            "The program's own files cannot be packed to be copied.",
            cause=f"{_ROOT} is neither a checkout nor an installation with a list of its files.",
            next_step="Install it with pip or pipx, or start it from a checkout.",
        )
    for file in found.files:
        name = file.as_posix()
        top, path = name.split("/")[0], Path(str(found.locate_file(file)))
        ours = top in PACKAGES or (top.endswith(".dist-info") and path.name not in _LEFT_OUT)
        if ours and path.suffix not in _NEVER and "__pycache__" not in name:
            yield name, path.read_bytes()


def _name_of(requirement: str) -> str:
    """ "torch<2.14,>=2.10" -> "torch"."""
    end = next((i for i, character in enumerate(requirement) if not (character.isalnum() or character in "-_.")), None)
    return requirement[:end]
