"""Where a container's limits are written: the files of this process's control groups, version 1 and 2.

Owns the layout of `/proc/self/cgroup` and `/sys/fs/cgroup`. Must not know what a limit is used for.
`root` is the file system's root, another folder in tests.
"""

from __future__ import annotations

from pathlib import Path

MOUNT = "sys/fs/cgroup"


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/self/cgroup` -> controller name to path; the version 2 entry has the name ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            for controller in controllers.split(","):
                paths[controller.removeprefix("name=")] = path.strip()
    return paths


def directories(root: Path, controller: str) -> tuple[Path, ...]:
    """This process's groups for `controller`, from its own up to the mount; missing ones are left out.

    A limit of any of them binds. Inside a container the path often does not exist below the mount: then the mount
    itself is the group.
    """
    membership = parse_membership(_text(root / "proc/self/cgroup"))
    found: list[Path] = []
    for key, mount in ((controller, root / MOUNT / controller), ("", root / MOUNT), ("", root / MOUNT / "unified")):
        if key not in membership or not mount.is_dir():
            continue
        group = mount / membership[key].lstrip("/")
        while group != mount and mount in group.parents:
            found.append(group)
            group = group.parent
        found.append(mount)
    return tuple(path for path in dict.fromkeys(found) if path.is_dir())


def read_number(path: Path) -> int | None:
    """The integer in a control file; None for "max", a missing file, or anything else."""
    try:
        return int(_text(path).strip())
    except ValueError:
        return None


def read_fields(path: Path) -> dict[str, int]:
    """A file of "name value" lines such as `memory.stat`."""
    fields: dict[str, int] = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdigit():
            fields[name] = int(value)
    return fields


def read_words(path: Path) -> list[str]:
    """The words of a control file such as `cpu.max`; empty when there is none."""
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
