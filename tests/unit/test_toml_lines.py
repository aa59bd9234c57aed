"""Lines of keys in TOML, and refusals that name them."""

from __future__ import annotations

import pytest

from engine.errors import EngineError
from engine.toml_lines import key_lines, key_path, line_of, located

TEXT = '''\
version = 1
training.epochs = 2
note = """
[fake]
x = 3
"""
[data]  # [not a header]
train = "a # [b"
list = [
  1, 2, # ]
]
after = 1
[[stages]]
name = "a"
[[stages]]
layers = 4
weights = {web = 1, "code" = 2}
[stages.extra]
"quoted key" = 1
[[sources]]
name = "x"
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("training.epochs", 2),
        ("data.train", 8),
        ("data.after", 12),
        ("stages[1].name", 14),
        ("stages[2].layers", 16),
        ("stages[2].extra.quoted key", 19),
        ("sources[1].name", 21),
        ("stages", 13),
        ("stages[2]", 15),
    ],
)
def test_every_key_has_the_line_that_sets_it(key: str, line: int) -> None:
    assert key_lines(TEXT)[key_path(key)] == line


def test_what_stands_in_texts_and_arrays_is_no_key() -> None:
    found = key_lines(TEXT)
    assert ("fake",) not in found
    assert ("x",) not in found


@pytest.mark.parametrize(
    ("key", "line"),
    [("stages[2].weights.web", 17), ("stages[1].layers", 13), ("data.gone", 7), ("nowhere.at_all", None)],
)
def test_a_key_that_is_left_out_has_the_line_of_its_table(key: str, line: int | None) -> None:
    assert line_of(TEXT, key) == line


def test_a_refusal_names_the_line_of_its_key_or_of_the_first_key_in_its_words() -> None:
    own = located(EngineError("spec.conflict", "That cannot be.", key="stages[2].layers"), TEXT)
    assert own.what == "line 16: That cannot be."
    told = located(EngineError("spec.conflict", "model.source goes with data.after only."), TEXT)
    assert told.what.startswith("line 12: ")
    nothing = EngineError("spec.conflict", "Nothing is named.")
    assert located(nothing, TEXT) is nothing
