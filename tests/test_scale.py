"""The tables of docs/scale.md are those of its constants."""

from __future__ import annotations

from pathlib import Path

from benchmarks.scale import Inputs, constants_table, exercise

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_page_has_what_the_command_prints() -> None:
    lines = set(PAGE.read_text(encoding="utf-8").splitlines())
    printed = [line for line in (*constants_table(), *exercise(Inputs())) if line]
    assert len(printed) > 30
    assert [line for line in printed if line not in lines] == []


def test_twice_the_gpus_take_half_the_hours_and_ask_for_twice_the_storage() -> None:
    def cell(inputs: Inputs, name: str) -> float:
        (line,) = [line for line in exercise(inputs) if line.startswith(f"| {name} |")]
        return float(line.split("|")[2].split()[0].replace(",", ""))

    one, two = Inputs(), Inputs(gpus=128)
    assert cell(two, "an epoch") == round(10_000_000 / (128 * 2078))
    assert cell(one, "an epoch") == round(10_000_000 / (64 * 2078))
    assert cell(one, "from storage") == round(64 * 2078 * 110e3 / 1e9, 1)
    assert cell(two, "from storage") == round(128 * 2078 * 110e3 / 1e9, 1)
    # of a ring over n nodes, each sends and receives 2 (n - 1) / n of the gradient
    step = 128 / 2078
    assert cell(one, "gradient, between nodes") == round(2 * 7 / 8 * 4 * 43_998_032 / step / 1e9, 1)
