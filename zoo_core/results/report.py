"""Writes ranked rows as a table for a terminal, plain text, Markdown, CSV or JSON. It needs only the results."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from io import StringIO
from itertools import groupby
from typing import Literal, TypeAlias, get_args

from zoo_core.errors import UsageError, nearest
from zoo_core.results.columns import aligned
from zoo_core.results.effort import lines_of
from zoo_core.results.ranking import Difference, Estimate, FailedTrial, Rate, Report, Row, differences, report_of
from zoo_core.results.store import Result

__all__ = ["Difference", "FailedTrial", "Format", "Report", "Row", "differences", "render", "report_of"]

Format: TypeAlias = Literal["table", "text", "md", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

PERCENT = frozenset({"accuracy", "average_precision", "macro_f1", "top5_accuracy"})  # shares, shown in per cent
MIB = 2**20

HEADER = (
    *("rank", "spec", "score", "95 %", "seeds", "gain", "trainable", "parameters"),
    *("train ex/s", "infer ex/s", "MiB", "train s", "missing"),
)
WORDS = frozenset({"spec", "missing"})  # columns that are not numbers
LEGEND = {
    "=": "= its interval overlaps the best one's: the two are not told apart",
    "~": "~ varies too much from window to window or seed to seed to be compared",
    "±": "score: mean ± standard deviation over seeds; 95 %: half width of the mean's t interval; "
    "gain: over random initialisation, ± Welch's 95 % interval",
}


def render(
    results: Iterable[Result],
    *,
    form: str = "table",
    width: int | None = None,
    outdated: frozenset[str] = frozenset(),
    remarks: Sequence[str] = (),
) -> str:
    """The report as text. form: table, text, md, csv (raw numbers in full precision, no remarks) or json.

    outdated, remarks: as for `report_of`. width: of the terminal; None means its own.
    A table has colours and borders on a terminal and is plain text elsewhere. Raises UsageError for another form.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}; there are {', '.join(FORMATS)}{nearest(form, FORMATS)}")
    report = report_of(results, outdated=outdated, remarks=remarks)
    if form == "csv":
        return _csv(report)
    if form == "json":
        return json.dumps(asdict(report), indent=2)
    if form == "md":
        return _markdown(report)
    if form == "text" or (width is None and not sys.stdout.isatty()):
        return _plain_report(report)
    return _table(report, width or shutil.get_terminal_size().columns)


def _tables(report: Report) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """The title, header and cells of each task's table. Empty columns are left out."""
    for (task, metric, split, budget), rows in groupby(
        report.rows, key=lambda row: (row.task, row.metric, row.split, row.budget)
    ):
        unit = " in %" if metric in PERCENT else ""
        title = f"{task}: {metric}{unit} on {split}" + (f", {budget}" if budget else "")
        columns = [column for column in zip(HEADER, *map(_cells, rows), strict=True) if any(column[1:])]
        header, *cells = zip(*columns, strict=True)
        yield title, header, cells


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.rank}{'=' if row.tied else ''}",
        f"{row.spec} (unpublished: {', '.join(row.unpublished)})" if row.unpublished else row.spec,
        _score(row.score, row.metric),
        _half_width(row.score, row.metric),
        str(row.score.num),
        _gain(row.gain, row.metric),
        _count(row.num_trainable),
        _count(row.num_parameters),
        _rate(row.training),
        _rate(row.inference),
        "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / MIB:,.0f}",
        "" if row.train_seconds is None else f"{row.train_seconds:.3g}",
        _missing(row),
    )


def _number(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if metric in PERCENT else f"{value:.4g}"


def _score(score: Estimate, metric: str) -> str:
    spread = "" if score.std is None else f" ± {_number(score.std, metric)}"
    return _number(score.mean, metric) + spread


def _half_width(score: Estimate, metric: str) -> str:
    return "" if score.half_width is None else f"± {_number(score.half_width, metric)}"


def _gain(gain: Estimate | None, metric: str) -> str:
    if gain is None:
        return ""
    sign = "+" if gain.mean >= 0 else "-"
    spread = "" if gain.half_width is None else f" ± {_number(gain.half_width, metric)}"
    return f"{sign}{_number(abs(gain.mean), metric)}{spread}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _rate(rate: Rate | None) -> str:
    return "" if rate is None else f"{'~' if rate.unsteady else ''}{rate.examples_per_second:,.0f}"


def _missing(row: Row) -> str:
    counts = {"failed": row.num_failed, "refused": row.num_refused, "stopped": row.num_stopped}
    counts |= {"out of date": row.num_outdated}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def _notes(report: Report) -> list[str]:
    """Failures with their reasons, remarks, what all took, and an explanation of the marks in the tables."""
    lines = [f"{failure.status}: {_failure_line(failure)}" for failure in report.failures]
    lines += [f"note: {remark}" for remark in report.remarks]
    lines += lines_of(report.effort)
    shown = "".join(cell for *_, rows in _tables(report) for cells in rows for cell in (cells[0], *cells[2:]))
    return lines + [text for mark, text in LEGEND.items() if mark in shown]


def _failure_line(failure: FailedTrial) -> str:
    seeds = ", ".join(map(str, failure.seeds))
    return f"{failure.spec} on {failure.task}, seed{'s' if len(failure.seeds) > 1 else ''} {seeds}: {failure.reason}"


def _plain_report(report: Report) -> str:
    blocks = []
    for title, header, rows in _tables(report):
        numeric = [place for place, name in enumerate(header) if name not in WORDS]
        blocks.append("\n".join([title, *aligned((header, *rows), numeric)]))
    return _joined(blocks, _notes(report))


def _table(report: Report, width: int) -> str:
    from rich import box  # rich costs as much as all of `zoo list`, and only a terminal needs it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = StringIO()
    console = Console(file=stream, width=width, force_terminal=True)  # it heeds NO_COLOR by itself
    for title, header, rows in _tables(report):
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in header:
            numeric = name not in WORDS
            table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
        for cells in rows:
            best = cells[0].rstrip("=") == "1"
            table.add_row(*map(Text, cells), style="bold" if best else "" if cells[0].endswith("=") else "dim")
        console.print(table)
    for note in _notes(report):
        console.print(Text(note))
    return stream.getvalue().rstrip("\n") or _joined([], [])


def _markdown(report: Report) -> str:
    blocks = []
    for title, header, rows in _tables(report):
        rule = ["---" if name in WORDS else "---:" for name in header]
        lines = ["| " + " | ".join(map(_escaped, cells)) + " |" for cells in (header, *rows)]
        blocks.append("\n".join([f"**{title}**", "", lines[0], f"| {' | '.join(rule)} |", *lines[1:]]))
    return _joined(blocks, [f"- {note}" for note in _notes(report)])


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")


def _joined(blocks: Sequence[str], notes: Sequence[str]) -> str:
    if not blocks and not notes:
        return "no results yet"
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def _csv(report: Report) -> str:
    stream = StringIO()
    records = [_record(row) for row in report.rows]
    records += [
        {
            "spec": failure.spec,
            "task": failure.task,
            "status": failure.status,
            "reason": failure.reason,
            "num_seeds": len(failure.seeds),
        }
        for failure in report.failures
    ]
    writer = csv.DictWriter(stream, fieldnames=CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().rstrip("\n")


CSV_COLUMNS = (
    *("rank", "tied", "spec", "task", "backbone", "adapters", "head", "weights", "budget", "metric", "split"),
    *("score", "score_std", "score_half_width", "num_seeds", "gain", "gain_half_width"),
    *("num_trainable", "num_parameters", "training_examples_per_second", "training_unsteady"),
    *("inference_examples_per_second", "inference_unsteady", "peak_memory_bytes", "train_seconds"),
    *("num_failed", "num_refused", "num_stopped", "num_outdated", "status", "reason", "unpublished"),
)


def _record(row: Row) -> dict[str, object]:
    record: dict[str, object] = {name: getattr(row, name) for name in CSV_COLUMNS if hasattr(row, name)}
    record |= {"score": row.score.mean, "score_std": row.score.std, "score_half_width": row.score.half_width}
    record |= {"num_seeds": row.score.num, "status": "ok", "unpublished": " ".join(row.unpublished)}
    record |= {"gain": None, "gain_half_width": None}
    if row.gain is not None:
        record |= {"gain": row.gain.mean, "gain_half_width": row.gain.half_width}
    for name, rate in (("training", row.training), ("inference", row.inference)):
        if rate is not None:
            record[f"{name}_examples_per_second"] = rate.examples_per_second
            record[f"{name}_unsteady"] = rate.unsteady
    return record
