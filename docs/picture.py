"""Draws docs/pictures/methods.svg: what each adapter reaches on three tasks, from benchmarks/results/methods-*.jsonl.

    python docs/picture.py

A test says when the file is not what the rows say.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PICTURE = DOCS / "pictures" / "methods.svg"
TASKS = {  # in the order of the panels, and what each is
    "trec": "120 questions, MiniLM-L6",
    "digits": "100 digits, vit-nano",
    "flowers": "100 photographs, MobileNetV1",
}
PANEL, LEFT, TOP, ROW, GAP = 220, 150, 52, 20, 28  # pixels


def main() -> int:
    """Writes the picture."""
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(), encoding="utf-8")
    print(PICTURE.relative_to(DOCS.parent))
    return 0


def drawn() -> str:
    """The picture: a row for each adapter, a panel for each task, a dot at the mean and a line of one deviation."""
    scores = {task: scores_of(task) for task in TASKS}
    order = sorted(scores["trec"], key=lambda name: -scores["trec"][name][0])
    names = [*order, *(name for task in TASKS for name in scores[task] if name not in order)]
    names = list(dict.fromkeys(names))
    width, height = LEFT + len(TASKS) * (PANEL + GAP), TOP + ROW * len(names) + 34
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    letters = 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {letters} role="img" aria-label="Accuracy of each adapter">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, name in enumerate(names):
        y = TOP + ROW * place
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="#222222">{name}</text>')
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{width - GAP}" y2="{y}" stroke="#eeeeee"/>')
    for place, (task, described) in enumerate(TASKS.items()):
        parts += panel(LEFT + place * (PANEL + GAP), task, described, scores[task], names)
    foot = "Accuracy on test in %: mean and one standard deviation over three seeds; no dot: not tried, or refused."
    parts.append(f'<text x="{LEFT}" y="{height - 6}" fill="#555555">{foot}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(left: int, task: str, described: str, scores: dict[str, tuple[float, float]], names: list[str]) -> list[str]:
    """One task: its title, its axis in steps of five, and its dots."""
    low = 5 * int(min(mean - deviation for mean, deviation in scores.values()) // 5)
    high = 5 * int(-(-max(mean + deviation for mean, deviation in scores.values()) // 5))
    bottom = TOP + ROW * (len(names) - 1) + 10

    def at(score: float) -> float:
        return round(left + PANEL * (score - low) / (high - low), 1)

    parts = [
        f'<text x="{left}" y="16" font-weight="bold" fill="#222222">{task}</text>',
        f'<text x="{left}" y="32" fill="#555555">{described}</text>',
    ]
    for tick in range(low, high + 1, 5 if high - low <= 20 else 10):
        x = at(tick)
        parts.append(f'<line x1="{x}" y1="{TOP - 10}" x2="{x}" y2="{bottom}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 13}" text-anchor="middle" fill="#555555">{tick}</text>')
    for place, name in enumerate(names):
        if name in scores:
            (mean, deviation), y = scores[name], TOP + ROW * place
            ends = f'x1="{at(mean - deviation)}" x2="{at(mean + deviation)}"'
            parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="#3366aa" stroke-width="2"/>')
            parts.append(f'<circle cx="{at(mean)}" cy="{y}" r="4" fill="#3366aa"/>')
    return parts


def scores_of(task: str) -> dict[str, tuple[float, float]]:
    """Mean and deviation in % of each adapter that was scored."""
    found: dict[str, list[float]] = {}
    for line in (RESULTS / f"methods-{task}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["status"] == "ok":
            found.setdefault(row["adapters"].replace("(r=4)", ""), []).append(100 * row["score"])
    return {name: (statistics.mean(each), statistics.stdev(each)) for name, each in found.items()}


if __name__ == "__main__":
    sys.exit(main())
