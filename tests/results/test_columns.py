"""Columns of text under each other."""

from __future__ import annotations

import pytest

from zoo_core.results.columns import aligned


def test_cells_begin_or_end_below_each_other_and_lines_end_with_no_blank() -> None:
    rows = [("name", "files", ""), ("a", "1", "kept"), ("long-name", "12", "")]
    assert aligned(rows, right=(1,)) == [
        "name       files",
        "a              1  kept",
        "long-name     12",
    ]


def test_no_rows_are_no_lines_and_rows_of_two_lengths_are_a_mistake() -> None:
    assert aligned([]) == []
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        aligned([("a", "b"), ("c",)])
