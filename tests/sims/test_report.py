"""Tables of runs: every number is in its unit, nothing missing is silent."""

import json
import math
from statistics import fmean, stdev

import pytest
from typer.testing import CliRunner

from ff_flower.errors import DataError
from sims.cli import app
from sims.report import TextTable, distinct, gaps, load_metrics, run_tables, show, summarize
from sims.run import wall_clock

RECALL = {"accuracy": 0.5, "auroc": None, "macro_f1": 1 / 3, "per_class_recall": [1.0, 0.0]}


def metrics(seed: int = 0, accuracy: float = 0.9, **changes) -> dict:
    """Return a small metrics.json."""
    return {
        "method": "federated-factory",
        "dataset": "digits",
        "partition": "pathological",
        "seed": seed,
        "classes": ["no", "yes"],
        "results": {
            "client_mean": {
                "accuracy": accuracy,
                "accuracy_std": 0.01,
                "auroc": 0.99,
                "macro_f1": 0.8,
                "bytes": {"up": 2e6, "down": 0},
            },
            "server": {**RECALL, "bytes": {"up": 1_500_000, "down": 0}},
        },
        "seconds": {"total": 12.0 + seed, "fit": 3.25},
        "bytes": {"up": 2_000_000, "down": 5_000_000, "modules-up": 1_500_000},
        "rounds": 1,
        "missing": [],
        "quarantined": [],
        "declined": [],
        "notes": [],
        **changes,
    }


def table(tables: list[TextTable], title: str) -> TextTable:
    """Return the table whose title begins so."""
    return next(one for one in tables if one.title.startswith(title))


def test_results_are_percent_and_megabytes():
    """A row holds percentages and 10^6 bytes in the protocol's order of results, and a dash for what is not defined."""
    assert table(run_tables(metrics()), "federated-factory on digits").rows == (
        ("server", "50.00", "-", "33.33", "1.500", "0.000"),
        ("client_mean", "90.00 ± 1.00", "99.00", "80.00", "2.000", "0.000"),
    )


def test_recall_has_one_row_per_class():
    """The recall table has the classes as rows, and as columns the results that have a recall."""
    recall = table(run_tables(metrics()), "Recall")
    assert recall.header == ("class", "server")
    assert recall.rows == (("no", "100.00"), ("yes", "0.00"))


def test_totals_stand_last():
    """Total seconds stand below the stages, up and down below the payloads."""
    tables = run_tables(metrics())
    assert table(tables, "Time").rows == (("fit", "3.2"), ("total", "12.0"))
    assert [row[0] for row in table(tables, "Traffic").rows] == ["modules-up", "up", "down"]


def test_seconds_and_bytes_are_of_runs_in_one_session():
    """A run that went on with what an earlier session left has no seconds or bytes in the means; its other numbers are there."""
    again = metrics(seed=1, resumed=True)
    again["results"]["server"]["bytes"] = {"up": 9_000_000, "down": 9_000_000}
    alone, both = ({row[3]: row for row in summarize(runs).rows} for runs in ([metrics()], [metrics(), again]))
    assert both["server"][4] == "2" and both["server"][-3:] == alone["server"][-3:] and both["server"][-1] == "12"


def test_seconds_outside_the_stages_are_told_of_what_was_made_now():
    """The end of a run tells the seconds outside its stages, unless some of these were made in an earlier session."""
    assert "12.0 s, of which 8.8 s outside" in wall_clock(12.0, metrics())
    for earlier in (wall_clock(12.0, metrics(resumed=True)), wall_clock(3.0, metrics())):
        assert "made before" in earlier and "outside" not in earlier


def test_the_best_round_is_named():
    """A result that belongs to a round says which."""
    results = {"best_round": RECALL | {"round": 7}}
    assert run_tables(metrics(results=results))[0].rows[0][0] == "best_round (round 7)"


def test_a_whole_run_has_no_gaps():
    """Without missing nodes and refused modules there is no gap and no such table, declined classes apart."""
    assert gaps(metrics()) == []
    assert not any(one.title == "What is missing" for one in run_tables(metrics()))
    declined = metrics(declined=[{"partition": 2, "label": 1, "reason": "4 images; 10 needed"}])
    assert gaps(declined) == []
    assert table(run_tables(declined), "What is missing").rows == (("node 2 has no module for label 1: 4 images; 10 needed",),)


def test_gaps_are_named():
    """Each missing node and each quarantined module is a sentence with its reason."""
    holes = metrics(
        missing=[{"partition": 3, "reason": "no reply in time"}],
        quarantined=[{"partition": 4, "rule": "finite-weights", "detail": "nan in conv"}],
    )
    assert gaps(holes) == [
        "node 3 is missing: no reply in time",
        "a module of node 4 is quarantined: finite-weights: nan in conv",
    ]


def test_the_excluded_are_named():
    """Who is excluded is said beside what is missing, but is no gap: it was asked for."""
    without = metrics(excluded=["3", "5/7"])
    assert gaps(without) == []
    rows = [row[0] for row in table(run_tables(without), "What is missing").rows]
    assert [row.partition(" is ")[0] for row in rows] == ["owner 3", "label 7 of owner 5"]


def test_summary_is_mean_and_sample_deviation():
    """Runs of one group become mean and standard deviation of the sample, by hand calculation."""
    values = [0.90, 0.94, 0.95]
    row = summarize([metrics(seed, value) for seed, value in enumerate(values)]).rows[1]
    percent = [100 * value for value in values]
    assert row[:5] == ("digits", "pathological", "federated-factory", "client_mean", "3")
    assert row[5] == f"{fmean(percent):.2f} ± {stdev(percent):.2f}"
    assert row[8:] == ("1", "2", "0", "13.00 ± 1.00")


def test_summary_of_one_run_has_no_deviation():
    """One run has a mean and no deviation; a value that no run has is a dash."""
    row = summarize([metrics()]).rows[0]
    assert row[3:8] == ("server", "1", "50", "-", "33.33")


def test_summary_keeps_groups_apart():
    """Runs of another data set, partition or method are rows of their own."""
    others = [metrics(), metrics(dataset="blood"), metrics(partition="iid"), metrics(method="fedavg")]
    assert len(summarize(others).rows) == 4 * 2


def test_markdown_is_a_table():
    """Markdown has a row per line, names to the left, numbers to the right, and pipes inside cells escaped."""
    text = TextTable("T", ("a", "b"), (("x|y", "1"),)).markdown()
    assert text == "**T**\n\n| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"


def test_shown_tables_are_not_cut(capsys):
    """A pipe receives every cell whole, however wide the terminal would be."""
    long = "word " * 30 + "end"
    show([TextTable("T", ("a",), ((long,),), prose=True)])
    assert long in capsys.readouterr().out


def test_metrics_are_found_by_run_and_by_file(tmp_path):
    """A run directory and its metrics.json name the same run."""
    (tmp_path / "metrics.json").write_text(json.dumps(metrics()))
    assert load_metrics(tmp_path) == load_metrics(tmp_path / "metrics.json") == metrics()


def test_a_run_counts_once(tmp_path):
    """A run that is named twice, by its directory, its file or a link, is one run in a report."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, run in enumerate(runs):
        run.mkdir()
        (run / "metrics.json").write_text(json.dumps(metrics(seed=seed)))
    (tmp_path / "latest").symlink_to("two")
    named = [*runs, tmp_path / "latest", tmp_path / "latest" / "metrics.json", tmp_path / "." / "one"]
    assert distinct(named) == runs and distinct(reversed(named)) == named[:2:-1]
    told = [CliRunner().invoke(app, ["report", *map(str, some)]).output for some in (runs, named)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "cannot be read"),
        ("{", "must be JSON"),
        ("[]", "must have the keys method"),
        ('{"method": 1}', "must have the keys"),
    ],
)
def test_unfit_metrics_are_refused(tmp_path, content, rule):
    """A file that is absent, no JSON or no metrics is refused by path, rule and remedy."""
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=f"metrics.json: {rule}.*;"):
        load_metrics(path)


def test_not_a_number_is_left_out_of_means():
    """A value that is not a number does not spoil the mean of the others."""
    spoilt = metrics(seed=1, accuracy=math.nan)
    assert summarize([metrics(), spoilt]).rows[1][5] == "90"


def test_cells_are_no_markup(capsys):
    """What others wrote is shown as it is, whatever brackets it holds."""
    show([TextTable("a [table]", ("what", "why"), (("node 1", "[/] [red]failed[/red] [other]"),), prose=True)])
    shown = capsys.readouterr().out
    assert "[/] [red]failed[/red] [other]" in shown and "a [table]" in shown


def test_runs_of_other_settings_are_not_averaged():
    """Runs that differ by more than their seed stand in rows of their own, told apart by their settings."""
    runs = [metrics(settings_digest=digest * 8, seed=seed) for digest in ("aa", "bb") for seed in (0, 1)]
    summary = summarize(runs)
    place = summary.header.index("settings")
    assert {row[place] for row in summary.rows} == {"aaaaaaaa", "bbbbbbbb"}
    assert {row[place + 1] for row in summary.rows} == {"2"}
    assert "settings" not in summarize(runs[:2]).header
