"""Borders and sizes: what may be imported where, measured at run time, and that files stay readable."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "numpy", "peft", "bitsandbytes", "accelerate"}


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules after running `code` in a fresh interpreter."""
    script = f"import sys, json\n{code}\nprint('\\n' + json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_nothing_heavy_is_imported_before_first_paint() -> None:
    loaded = modules_after(
        "import asyncio\n"
        "from scaler_tui.terminal import RenderPolicy\n"
        "from scaler_tui.app import ScalerApp, Start\n"
        "async def paint():\n"
        "    async with ScalerApp(RenderPolicy(), Start(demo=True)).run_test(size=(80, 24)):\n"
        "        pass\n"
        "import threading; threading.Thread.start = lambda self: None\n"  # nothing read after the paint counts
        "asyncio.run(paint())\n"
    )
    assert not loaded & (HEAVY | {"pydantic", "pynvml", "psutil", "huggingface_hub", "pyarrow"})


def test_plans_operators_and_proofs_need_nothing_heavy_in_the_wizard() -> None:
    loaded = modules_after(
        "import scaler_tui.screens.expansion, scaler_tui.screens.operators, scaler_tui.screens.proof\n"
        "from engine.advise.answers import answers_of\n"
        "from engine.advise.growth import Setting, growth_options\n"
        "from engine.advise.operator_options import operator_options\n"
        "from engine.expansion.asked import source_of\n"
        "from engine.hardware.detect import detect\n"
        "from engine.models.analyze import analyze_model\n"
        "from engine.models.resolve import resolve_model\n"
        "ref = resolve_model('demo')\n"
        "source = source_of(ref)\n"
        "setting = Setting('partial-expansion', analyze_model(ref), detect(), answers_of())\n"
        "for option in growth_options(setting, source):\n"
        "    assert operator_options(source.layout, source.config, option.choice.plan)\n"
    )
    assert not loaded & (HEAVY | {"pydantic", "safetensors"})


@pytest.mark.parametrize(
    "command",
    [
        ["doctor", "--json"],
        ["runs", "--json"],
        ["matrix", "demo", "--json"],
        ["prices", "--json"],
        ["inspect", "demo"],
        ["expand", "demo", "--to", "2x", "--dry-run"],
        ["plan", "demo"],
        ["estimate", "demo", "--json", "--largest", "sequence"],
        ["scores", "--json"],
    ],
)
def test_headless_looks_need_neither_torch_nor_textual(command: list[str]) -> None:
    loaded = modules_after(f"from scaler_tui.cli import main\nassert main({command!r}) == 0\n")
    assert not loaded & (HEAVY | {"textual", "rich", "pydantic"})


def sources() -> list[Path]:
    return [path for folder in ("engine", "scaler_tui") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_its_purpose_and_stays_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module says what it owns"
    assert len(text.splitlines()) <= 400


def test_only_the_output_modules_print() -> None:
    allowed = {"output.py", "plain.py"}
    for path in sources():
        if path.name in allowed or "train" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not is_print, f"{path}:{node.lineno} prints"  # type: ignore[attr-defined]


def unquoted(text: ast.JoinedStr) -> list[str]:
    """What looks like a path in a command of this text, and would come apart at a space."""
    found, told = [], ""
    for part in text.values:
        if isinstance(part, ast.Constant):
            told = (told + str(part.value)).rpartition(". ")[2]
        elif isinstance(part, ast.FormattedValue):
            said = ast.unparse(part.value)
            command = re.search(r"scaler-wizard [a-z]|sky jobs launch|dstack apply", told)
            if command and re.search(PATH_NAMES, said) and not said.startswith("shlex."):
                found.append(f"{told}{{{said}}}")
            told += "x"
    return found


PATH_NAMES = r"(?<![a-z])(path|folder|target|out|file|spec|SPEC|source|base)(?![a-z_])(?!.*\.value$)"


@pytest.mark.parametrize("package", ["engine", "scaler_tui"])
def test_a_path_in_a_command_that_is_told_is_quoted(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                assert unquoted(node) == [], path
