"""Records what SkyPilot and dstack accept, for `tests/unit/test_jobfiles.py`.

Run it with a python that has one of them, in an environment of its own:
    python tests/support/record_schemas.py sky tests/data/schemas/skypilot.json
    python tests/support/record_schemas.py dstack tests/data/schemas/dstack.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any


def of_sky() -> dict[str, Any]:
    """As its server checks tasks: a client lets unknown keys pass."""
    os.environ["IS_SKYPILOT_SERVER"] = "true"
    from sky.utils import schemas

    return {
        "tool": "skypilot",
        "version": importlib.metadata.version("skypilot"),
        "source": "sky.utils.schemas: get_task_schema, get_resources_schema, get_storage_schema; Apache-2.0",
        "task": plain(schemas.get_task_schema()),
        "resources": plain(schemas.get_resources_schema()),
        "storage": plain(schemas.get_storage_schema()),
    }


def of_dstack() -> dict[str, Any]:
    """The JSON schema of a task."""
    from dstack._internal.core.models.configurations import TaskConfiguration

    return {
        "tool": "dstack",
        "version": importlib.metadata.version("dstack"),
        "source": "TaskConfiguration.model_json_schema() of dstack._internal.core.models.configurations; MPL-2.0",
        "task": TaskConfiguration.model_json_schema(),
    }


def plain(schema: Any) -> Any:
    """SkyPilot's own keyword for words in any case, as a pattern that every validator knows."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: plain(value) for key, value in schema.items() if key != "case_insensitive_enum"}
    if "case_insensitive_enum" in schema:
        found["pattern"] = f"^(?i:{'|'.join(schema['case_insensitive_enum'])})$"
    return found


if __name__ == "__main__":
    document = {"sky": of_sky, "dstack": of_dstack}[sys.argv[1]]()
    Path(sys.argv[2]).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
