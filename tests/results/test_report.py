"""From results to ranked rows: figures against hand-made ones, and the same text every time."""

from __future__ import annotations

import csv
import json
import random
import re
from dataclasses import replace
from io import StringIO

import pytest

from zoo_core.errors import NotFoundError, UsageError
from zoo_core.results.ranking import differences, report_of, t_quantile
from zoo_core.results.report import FORMATS, render
from zoo_core.results.store import Result

BASE = Result(
    trial="",
    digest="",
    record=None,
    status="ok",
    reason=None,
    metric="accuracy",
    score=0.0,
    split="test",
    num_examples=600,
    chosen=None,
    num_trainable=970,
    num_parameters=449_602,
    train_seconds=1.5,
    training={"examples_per_second": 1000.0, "spread": 0.05},
    inference={"examples_per_second": 5000.0, "spread": 0.05},
    peak_memory_bytes=256 << 20,
    coverage=None,
    versions={},
    device="cpu",
    threads=2,
    created_at="2026-11-21T00:00:00+00:00",
    backbone="starter/vit-nano",
    adapters="probe",
    head="linear",
    task="digits",
    seed=0,
    weights="pretrained",
)


def result(score: float | None, seed: int, **changes: object) -> Result:
    made = replace(BASE, score=score, seed=seed, **changes)  # type: ignore[arg-type]
    spec = f"{made.backbone}+{made.adapters}+{made.head}"
    trial = made.trial or f"{spec} task={made.task} seed={seed}"
    return replace(made, trial=trial, digest=made.digest or f"{made.weights} {trial} {made.metric} {made.status}")


def several(scores: list[float], **changes: object) -> list[Result]:
    return [result(score, seed, **changes) for seed, score in enumerate(scores)]


FULL, PROBE = [0.90, 0.94, 0.92], [0.70, 0.75, 0.80]
RANDOM = [0.40, 0.44, 0.48]
RESULTS = [
    *several(FULL, adapters="full"),
    *several(PROBE),
    *several(RANDOM, adapters="full", weights="random"),
    result(None, 0, adapters="prefix", status="refused", reason="needs the attention seam,\nwhich it lacks"),
    result(None, 1, adapters="prefix", status="refused", reason="needs the attention seam,\nwhich it lacks"),
    result(None, 3, status="failed", reason="out of memory"),
]


def test_rows_are_ranked_by_mean_score() -> None:
    rows = report_of(RESULTS).rows
    assert [(row.rank, row.spec) for row in rows] == [
        (1, "starter/vit-nano+full+linear"),
        (2, "starter/vit-nano+linear"),
        (3, "starter/vit-nano(weights=random)+full+linear"),
    ]


def test_the_empty_chain_is_a_word_of_its_column_and_no_part_of_a_spec() -> None:
    refused = result(None, 0, adapters="probe+ncm", head="", status="refused", reason="it makes no sense")
    report = report_of([*several(PROBE), refused])
    assert [(row.spec, row.adapters) for row in report.rows] == [("starter/vit-nano+linear", "probe")]
    assert [failure.spec for failure in report.failures] == ["starter/vit-nano+ncm"]


def test_weights_that_nobody_tells_of_are_no_argument() -> None:
    (row,) = report_of(several(PROBE, weights="as built")).rows
    assert (row.spec, row.weights, row.gain) == ("starter/vit-nano+linear", "as built", None)


def test_an_error_is_better_when_it_is_lower() -> None:
    rows = report_of(
        [
            *several([50, 51], metric="mean_absolute_error", adapters="full"),
            *several([40, 41], metric="mean_absolute_error"),
            *several([60, 63], metric="mean_absolute_error", weights="random"),
        ]
    ).rows
    assert [row.score.mean for row in rows] == [40.5, 50.5, 61.5]
    assert rows[0].gain is not None
    assert rows[0].gain.mean == pytest.approx(21.0)


def test_mean_spread_and_interval_are_students() -> None:
    """Reference: scipy.stats.t.interval(0.95, 2, loc=0.92, scale=sem) has a half width of 0.0496828."""
    score = report_of(RESULTS).rows[0].score
    assert [score.mean, score.std, score.num] == pytest.approx([0.92, 0.02, 3])
    assert score.half_width == pytest.approx(0.0496828, rel=1e-4)  # the table has four decimals


def test_the_gain_over_random_initialisation_is_welchs() -> None:
    """Reference: scipy.stats.ttest_ind(FULL, RANDOM, equal_var=False).confidence_interval() is 0.39689 to 0.56311."""
    row = report_of(RESULTS).rows[0]
    assert row.gain is not None
    assert row.gain.mean == pytest.approx(0.48)
    assert row.gain.half_width == pytest.approx((0.56311 - 0.39689) / 2, rel=0.005)  # quantiles are interpolated
    assert report_of(RESULTS).rows[1].gain is None, "probe has no random row"


def test_a_gain_from_one_seed_has_no_interval() -> None:
    rows = report_of([result(0.9, 0), result(0.5, 0, weights="random")]).rows
    assert rows[0].gain is not None
    assert rows[0].gain.mean == pytest.approx(0.4)
    assert rows[0].gain.half_width is None


@pytest.mark.parametrize(
    ("degrees", "exact"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (30, 2.04227), (60, 2.0003), (120, 1.97993)]
)
def test_the_t_table_is_exact_at_its_entries(degrees: float, exact: float) -> None:
    assert t_quantile(degrees) == pytest.approx(exact, abs=1e-4)  # four decimals, rounded up


def test_the_t_table_never_gives_too_narrow_an_interval() -> None:
    quantiles = [t_quantile(degrees / 10) for degrees in range(5, 20000)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert min(quantiles) > 1.959964
    exact = {1.5: 6.0167, 2.5: 3.5747, 5.5: 2.5019, 35: 2.0301, 50: 2.0086, 90: 1.9867, 500: 1.9647, 5000: 1.9604}
    assert all(value <= t_quantile(degrees) < 1.25 * value for degrees, value in exact.items())


def test_rows_whose_intervals_overlap_the_best_are_not_told_apart() -> None:
    rows = report_of(
        [
            *several([0.90, 0.92, 0.94], adapters="full"),
            *several([0.89, 0.91, 0.93], adapters="partial"),
            *several([0.10, 0.11, 0.12], adapters="norm"),
            result(0.5, 0, adapters="bitfit"),
        ]
    ).rows
    assert {row.adapters: row.tied for row in rows} == {"full": False, "partial": True, "bitfit": True, "norm": False}


def test_equal_means_share_a_rank() -> None:
    rows = report_of(
        [*several([0.5, 0.5], adapters="a"), *several([0.5, 0.5], adapters="b"), *several([0.1, 0.1])]
    ).rows
    assert [row.rank for row in rows] == [1, 1, 3]


def test_what_has_no_score_is_shown_with_its_reason() -> None:
    failures = report_of(RESULTS).failures
    assert [(failure.status, failure.seeds, failure.reason) for failure in failures] == [
        ("failed", (3,), "out of memory"),
        ("refused", (0, 1), "needs the attention seam, which it lacks"),
    ]
    assert [row.num_failed for row in report_of(RESULTS).rows] == [0, 1, 0]


def test_a_rate_with_a_wide_spread_is_marked() -> None:
    wide = {"examples_per_second": 1000.0, "spread": 0.5}
    rows = report_of([*several([0.9, 0.9], training=wide), *several([0.8, 0.8], adapters="full")]).rows
    assert [row.training.unsteady for row in rows if row.training] == [True, False]
    seeds = [
        result(0.9, seed, training={"examples_per_second": rate}) for seed, rate in enumerate((10.0, 100.0, 500.0))
    ]
    (row,) = report_of(seeds).rows
    assert row.training is not None
    assert (row.training.examples_per_second, row.training.unsteady) == (100.0, True)
    assert "~1,000" in render(several([0.9, 0.9], training=wide), form="text")


def test_unmeasured_rates_leave_their_cells_empty() -> None:
    (row,) = report_of([result(0.9, 0, training=None, inference={}, peak_memory_bytes=None)]).rows
    assert (row.training, row.inference, row.peak_memory_bytes) == (None, None, None)
    assert render([result(0.9, 0, training=None, inference=None)], form="md")


def test_a_column_that_nobody_fills_is_left_out_of_what_is_read_but_not_of_the_csv() -> None:
    header = render(several(PROBE), form="text").splitlines()[1]
    assert "spec" in header
    assert "gain" not in header
    assert "missing" not in header
    with_gain = render([*several(PROBE), *several(PROBE, weights="random")], form="md")
    assert "| gain |" in with_gain
    assert "gain" in render(several(PROBE), form="csv").splitlines()[0]


def test_different_budgets_tasks_and_metrics_are_different_tables() -> None:
    other = several([0.5], trial="starter/vit-nano+probe+linear task=digits epochs=3 seed=0")
    rows = report_of(
        [*several([0.9]), *other, *several([0.4], task="digits(shots=5)"), *several([0.3], metric="r2")]
    ).rows
    assert [(row.task, row.metric, row.budget, row.rank) for row in rows] == [
        ("digits", "accuracy", "", 1),
        ("digits", "accuracy", "epochs=3", 1),
        ("digits", "r2", "", 1),
        ("digits(shots=5)", "accuracy", "", 1),
    ]


def test_a_weights_argument_in_the_backbone_makes_the_same_row() -> None:
    written = several([0.4], backbone="starter/vit-nano(weights=random)", weights="random")
    assert report_of([*several([0.9]), *written]).rows[0].gain is not None


def test_a_failure_that_was_run_again_is_gone() -> None:
    failed = result(None, 0, status="failed", reason="killed", digest="d")
    report = report_of([failed, result(0.9, 0, digest="d")])
    assert (len(report.rows), report.failures) == (1, ())


def stopped(seed: int, **changes: object) -> Result:
    reason = "after 1 of 8 epochs its accuracy on validation, 0.5, is not among the better 2 of 4 combinations"
    told = {"rung": 1, "epochs": 1, "score": 0.5, "reason": reason}
    return result(None, seed, status="stopped", reason=reason, stopped=told, **changes)


def test_what_halving_stopped_stands_below_the_table_and_in_no_mean() -> None:
    found = report_of([*several(FULL, adapters="full"), *(stopped(seed) for seed in range(3))])
    assert [(row.adapters, row.score.num) for row in found.rows] == [("full", 3)]
    (told,) = found.failures
    assert (told.status, told.seeds) == ("stopped", (0, 1, 2))
    text = render([*several(FULL, adapters="full"), stopped(0)], form="text")
    assert "stopped: " in text
    assert "after 1 of 8 epochs" in text


def test_work_removed_and_time_to_first_comparison_are_told_where_rows_know_them() -> None:
    none = report_of(RESULTS).effort
    assert (none.num_trials, none.by_sharing, none.by_halving, none.first_comparison_seconds) == (0, None, None, None)
    assert "work removed" not in render(RESULTS, form="text")
    rows = [
        result(0.9, 0, work={"all": 600, "trained": 600, "passed": 100}, after_seconds=7.0),
        result(0.9, 1, work={"all": 600, "trained": 600, "passed": 100}, after_seconds=8.0),
        result(0.8, 0, adapters="full", work={"all": 600, "trained": 300, "passed": 300}, after_seconds=31.5),
        stopped(0, adapters="norm", work={"all": 600, "trained": 60, "passed": 60}, after_seconds=12.0),
        result(0.8, 0, adapters="full", task="other", after_seconds=2.0),
        result(None, 0, status="failed", reason="out of memory", adapters="bitfit", after_seconds=3.0),
    ]
    found = report_of(rows).effort
    assert (found.num_trials, found.num_passes) == (4, 2400)
    assert found.by_sharing == pytest.approx(1000 / 2400)
    assert found.by_halving == pytest.approx(840 / 2400)
    assert found.first_comparison_seconds == 12.0
    text = render(rows, form="text")
    assert "work removed: 76.7% of 2,400 passes of an example (41.7% by sharing, 35.0% by halving)" in text
    assert "time to first comparison: 12 s" in text


def test_a_seed_measured_twice_counts_once_and_is_told() -> None:
    older = result(0.5, 0, digest="a", created_at="2026-01-01T00:00:00+00:00")
    newer = result(0.9, 0, digest="b", created_at="2026-02-01T00:00:00+00:00")
    report = report_of([newer, older])
    assert (report.rows[0].score.mean, report.rows[0].score.num) == (0.9, 1)
    assert "only the newest counts" in report.remarks[0]


@pytest.mark.parametrize("form", FORMATS)
def test_a_report_does_not_depend_on_the_order_of_results(form: str) -> None:
    shuffled = list(RESULTS)
    random.Random(1).shuffle(shuffled)
    assert render(RESULTS, form=form) == render(shuffled, form=form)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_what_there_is_when_there_is_nothing(form: str) -> None:
    assert render([], form=form)


def test_the_text_shows_score_spread_gain_and_reasons() -> None:
    text = render(RESULTS, form="text")
    for piece in (
        "92.0 ± 2.0",
        "+48.0 ± ",
        "970",
        "1,000",
        "5,000",
        "256",
        "1 failed",
        "digits: accuracy in % on test",
    ):
        assert piece in text
    assert "refused: starter/vit-nano+prefix+linear on digits, seeds 0, 1: needs the attention seam" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_metric_that_is_no_share_is_not_shown_in_per_cent() -> None:
    assert "44.3 ± " in render(several([44.2, 44.4], metric="mean_absolute_error"), form="text")


def test_the_csv_holds_raw_numbers_and_reads_back() -> None:
    rows = list(csv.DictReader(StringIO(render(RESULTS, form="csv"))))
    assert float(rows[0]["score"]) == pytest.approx(sum(FULL) / 3, abs=1e-15)
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed", "refused"]


def test_the_json_reads_back() -> None:
    content = json.loads(render(RESULTS, form="json"))
    assert (len(content["rows"]), len(content["failures"])) == (3, 2)


def test_markdown_cells_keep_their_columns() -> None:
    text = render([result(0.9, 0, adapters='a(x="b|c")')], form="md")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "b\\|c" in text


def test_a_table_for_a_terminal_fits_its_width() -> None:
    table = render(RESULTS, form="table", width=100)
    assert "starter/vit" in table
    lines = re.sub(r"\x1b\[[0-9;]*m", "", render(RESULTS, form="table", width=160)).splitlines()
    assert max(map(len, lines)) <= 160


def test_an_unknown_format_is_told() -> None:
    with pytest.raises(UsageError, match=r"unknown format 'cvs'; .*did you mean csv"):
        render(RESULTS, form="cvs")


def test_differences_are_paired_by_seed() -> None:
    found = differences([*RESULTS, result(0.99, 7, adapters="full")], "starter/vit-nano+linear")
    assert [difference.spec for difference in found] == [
        "starter/vit-nano(weights=random)+full+linear",
        "starter/vit-nano+full+linear",
    ]
    full = found[1].difference
    assert [full.mean, full.num] == pytest.approx([(0.20 + 0.19 + 0.12) / 3, 3])


def test_differences_to_an_unknown_row_are_told() -> None:
    with pytest.raises(NotFoundError, match="did you mean"):
        differences(RESULTS, "starter/vit-nano+liner")
