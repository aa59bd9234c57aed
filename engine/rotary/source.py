"""The model that is raced or searched: its config, and a fingerprint that tells it from any other.

Owns reading both. Must not know torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.folder import check_folder

_END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Source:
    """A checked model folder."""

    folder: Path
    config: Mapping[str, Any]
    name: str

    @classmethod
    def read(cls, folder: Path, name: str = "") -> Source:
        """Raises EngineError `model.*`."""
        check_folder(folder)
        config = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config")
        return cls(folder, config, name or folder.resolve().name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over config, sizes, and both ends of every weight file, shortened.

        Whole files would take longer to read than some searches take.
        """
        digest = hashlib.sha256((self.folder / CONFIG_NAME).read_bytes())
        for path in sorted(self.folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_END_BYTES))
                file.seek(max(size - _END_BYTES, 0))
                digest.update(file.read(_END_BYTES))
        return digest.hexdigest()[:16]
