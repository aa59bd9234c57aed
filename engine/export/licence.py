"""Under which licence a model may be passed on: what its base says of itself.

Owns where that is looked up, in this order: the front matter of the base's README, the licence files beside it, its
config, the hub's listing, the profile of a known model. Must not know what is written with it. What is not said stays
unknown: nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import EngineError
from engine.models.config import CONFIG_NAME, read_json_object
from engine.models.hub import stated_licence
from engine.models.hub_settings import offline
from engine.models.model_profiles import find_model_profile
from engine.surgery.carry import SOURCE_README

UNKNOWN = "unknown"
_READMES = ("README.md", "readme.md", SOURCE_README)
_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "USE_POLICY*", "NOTICE*", "*acceptable_use*")
_LICENCES = ("LICEN", "COPYING")
"""How the names of licence texts begin; notices and policies go along, and name other people's licences."""
_NAMED = (
    (r"Apache License,?\s+Version 2\.0", "apache-2.0"),
    (r"\bMIT License\b", "mit"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3", "agpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
    (r"Redistribution and use in source and binary forms(?=[\s\S]{0,2000}Neither the name)", "bsd-3-clause"),
)
"""Words of a licence's own text -> its identifier."""
_HEAD_CHARACTERS = 400
"""A licence says what it is in its first lines; further down it speaks of others."""
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Licence:
    """What the base says."""

    identifier: str
    """As the hub writes it: "apache-2.0", "llama3.2", "other"; "unknown" where nothing is said."""
    origin: str
    """Where that was found, in words; "" for unknown."""
    name: str = ""
    link: str = ""
    files: tuple[Path, ...] = ()
    """Licence texts, to be carried along."""
    base_model: str = ""
    """What the base says it was made from."""

    @property
    def is_known(self) -> bool:
        return self.identifier != UNKNOWN


def licence_of(folder: Path, repo_id: str = "") -> Licence:
    """The licence of the model in `folder`; `repo_id` is its name on the hub, where it has one."""
    found = _beside(folder)
    if found.is_known or not repo_id:
        return found
    try:
        said = "" if offline() else stated_licence(repo_id)
    except EngineError:
        said = ""
    if said:
        return replace(found, identifier=said, origin=f"the hub's listing of {repo_id}")
    profile = find_model_profile(repo_id)
    if profile is None or not profile.license:
        return found
    return replace(found, identifier="other", name=profile.license, origin=f"what is known of {repo_id}")


def _beside(folder: Path) -> Licence:
    files = tuple(sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}))
    readme = next((folder / name for name in _READMES if (folder / name).is_file()), None)
    matter = front_matter(_text(readme)) if readme is not None else {}
    base = matter.get("base_model", "")
    if matter.get("license"):
        assert readme is not None
        name, link = matter.get("license_name", ""), matter.get("license_link", "")
        return Licence(matter["license"], f"its {readme.name}", name, link, files, base)
    texts = [file for file in files if file.name.upper().startswith(_LICENCES)]
    named = {_identifier(_text(file)) for file in texts}
    if len(named) == 1 and "" not in named:
        return Licence(named.pop(), f"its {texts[0].name}", files=files, base_model=base)
    said = _in_config(folder)
    if said:
        return Licence(said, f"its {CONFIG_NAME}", files=files, base_model=base)
    if texts:
        return Licence("other", f"its {' and '.join(file.name for file in texts)}", files=files, base_model=base)
    return Licence(UNKNOWN, "", files=files, base_model=base)


def _identifier(text: str) -> str:
    """Of a licence's own text; "" for one that is not known here."""
    for pattern, name in _NAMED:
        found = re.search(pattern, text, re.IGNORECASE)
        if found and found.start() < _HEAD_CHARACTERS:
            return name
    return ""


def front_matter(text: str) -> dict[str, str]:
    """Scalars at the top level of a model card's YAML, and the first entry of lists; a whole YAML reader is not needed
    for the few keys that are asked of it."""
    if not text.startswith("---"):
        return {}
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines()[1:]:
        if line.rstrip() == "---":
            break
        if match := re.match(r"^([A-Za-z_]+):\s*(.*)$", line):
            last, value = match[1], match[2].split(" #")[0].strip().strip("'\"")
            found[last] = value.strip("[]").split(",")[0].strip().strip("'\"")
        elif last and not found[last] and (entry := re.match(r"^\s*-\s*(.+)$", line)):
            found[last] = entry[1].strip().strip("'\"")
    return found


def _in_config(folder: Path) -> str:
    try:
        said = read_json_object(folder / CONFIG_NAME, code="model.config_damaged", what="a model config").get("license")
    except EngineError:
        return ""
    return said if isinstance(said, str) else ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:_READ_BYTES].decode("utf-8", errors="replace")
    except OSError:
        return ""
