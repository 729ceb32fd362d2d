"""Reports: what a node wrote is read back, and anything else is refused before it can reach a result."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_flower.errors import VerificationError
from ff_flower.reports import Answer, Declined, Fallback, FitReport, Forgotten, Interval, busy_seconds, plain_text

SHARES = st.floats(0, 1)
SECONDS = st.floats(0, 1e10)
INTERVALS = st.builds(Interval, SECONDS, SECONDS)
COUNTS = st.integers(0, 10**9)
LABELS = st.integers(0, 1000).map(str)
REASONS = st.text(max_size=20).map(plain_text)
FIT_REPORTS = st.builds(
    FitReport,
    partition=COUNTS,
    label_counts=st.dictionaries(LABELS, COUNTS, max_size=4),
    modules=st.dictionaries(LABELS, st.text("0123456789abcdef", max_size=64), max_size=4),
    declined=st.lists(st.builds(Declined, st.integers(-1, 1000), REASONS), max_size=3).map(tuple),
    work=INTERVALS,
    fallbacks=st.lists(st.builds(Fallback, st.integers(0, 1000), REASONS), max_size=3).map(tuple),
    peak_memory=COUNTS,
)
ANSWERS = st.builds(
    Answer,
    partition=COUNTS,
    metrics=st.fixed_dictionaries(
        {
            "accuracy": SHARES,
            "auroc": st.none() | SHARES,
            "macro_f1": SHARES,
            "per_class_recall": st.lists(st.none() | SHARES, max_size=4),
        }
    ),
    synthetic_digest=st.text("0123456789abcdef", max_size=64),
    training=INTERVALS,
    synthesis=INTERVALS,
    peak_memory=COUNTS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIT = FitReport(3, {"3": 147}, {"3": "ab" * 32}, (Declined(4, "2 images"),), Interval(1.5, 2.5), (Fallback(3, "few"),), 2**30)
METRICS = {"accuracy": 0.5, "auroc": None, "macro_f1": 0.25, "per_class_recall": [1.0, None]}
ANSWER = Answer(3, METRICS, "cd" * 32, Interval(1.0, 2.0), Interval(0.0, 1.0), 2**30)


@given(FIT_REPORTS)
def test_a_fit_report_survives_the_wire(report):
    """A fit report read from its own JSON is equal to it."""
    assert FitReport.from_json(report.to_json()) == report


@given(ANSWERS)
def test_an_answer_survives_the_wire(answer):
    """An answer read from its own JSON is equal to it."""
    assert Answer.from_json(answer.to_json()) == answer


@given(st.builds(Forgotten, COUNTS, st.dictionaries(st.text("0123456789abcdef", max_size=64), COUNTS, max_size=4), COUNTS))
def test_an_account_of_forgetting_survives_the_wire(account):
    """What a node says that it dropped, read from its own JSON, is equal to it."""
    assert Forgotten.from_json(account.to_json()) == account


@given(FIT_REPORTS, st.sets(st.integers(0, 1000)))
def test_a_report_without_labels_says_nothing_of_them(report, labels):
    """A report without some labels names none of them, says the same of the others, and is itself without them already."""
    rest = report.without(labels)
    assert {int(label) for label in (*rest.label_counts, *rest.modules)}.isdisjoint(labels)
    assert all(rest.modules[label] == module for label, module in report.modules.items() if int(label) not in labels)
    assert rest.without(labels) == rest and rest.work == report.work


@given(LABELS, COUNTS, COUNTS)
def test_a_node_has_as_many_images_as_its_labels(label, first, second):
    """The number of examples is the sum over labels."""
    report = FitReport(0, {label: first, "1001": second}, {}, (), Interval(0, 0))
    assert report.num_examples == first + second


@pytest.mark.parametrize("kind", [FitReport, Answer, Forgotten])
@given(text=st.text() | JSON.map(json.dumps))
def test_text_that_is_no_report_is_refused(kind, text):
    """Whatever text a node sends instead of a report is refused by the rule ``report``, and by nothing else."""
    with pytest.raises(VerificationError) as refusal:
        kind.from_json(text)
    assert refusal.value.rule == "report"


@pytest.mark.parametrize(("kind", "good"), [(FitReport, FIT), (Answer, ANSWER)])
@given(data=st.data())
def test_one_wrong_value_is_refused_or_harmless(kind, good, data):
    """A report with one value replaced is refused by the rule ``report``, or is one that standard JSON can hold."""
    values = json.loads(good.to_json())
    place = values
    keys = data.draw(st.sampled_from(list(_paths(values))))
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = data.draw(JSON)
    try:
        report = kind.from_json(json.dumps(values))
    except VerificationError as refusal:
        assert refusal.rule == "report"
    else:
        json.dumps(json.loads(report.to_json()), allow_nan=False)
        assert kind.from_json(report.to_json()) == report


@pytest.mark.parametrize("kind", [FitReport, Answer])
def test_bottomless_json_is_refused(kind):
    """JSON nested deeper than Python's stack is refused like any other text that is no report."""
    with pytest.raises(VerificationError, match="not JSON"):
        kind.from_json("[" * 200_000)


@pytest.mark.parametrize("accuracy", [None, True, -0.1, 1.1, math.nan, math.inf, "0.5", [0.5], 10**400])
def test_an_accuracy_outside_the_unit_interval_is_refused(accuracy):
    """An accuracy is a number in [0, 1]; nothing else reaches the mean over nodes."""
    values = json.loads(ANSWER.to_json())
    values["metrics"]["accuracy"] = accuracy
    with pytest.raises(VerificationError, match="report: malformed answer"):
        Answer.from_json(json.dumps(values))


@pytest.mark.parametrize("moment", [math.nan, math.inf, -math.inf, 10**400, "now", None])
@pytest.mark.parametrize(("kind", "good", "name"), [(FitReport, FIT, "work"), (Answer, ANSWER, "training")])
def test_an_endless_interval_is_refused(kind, good, name, moment):
    """Begin and end of work are finite numbers, so that seconds can be summed and written as JSON."""
    values = json.loads(good.to_json())
    values[name]["ended"] = moment
    with pytest.raises(VerificationError, match="report: malformed"):
        kind.from_json(json.dumps(values))


def test_busy_seconds_by_hand():
    """[0, 2] and [1, 3] overlap to 3 s, [5, 6] adds 1 s, [5.2, 5.8] lies within it: 4 s in all, in whatever order."""
    intervals = [Interval(0, 2), Interval(1, 3), Interval(5, 6), Interval(5.2, 5.8)]
    assert {busy_seconds(list(order)) for order in itertools.permutations(intervals)} == {4.0}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_busy_seconds_measure_the_union(ends):
    """With whole seconds the measure counts the unit cells that some interval covers; one that ends early covers none."""
    covered = {cell for began, ended in ends for cell in range(began, ended)}
    assert busy_seconds([Interval(began, ended) for began, ended in ends]) == len(covered)


def _paths(values, prefix=()):
    """Yield the way to every value inside nested dictionaries and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from _paths(value, (*prefix, key))


@pytest.mark.parametrize("count", [-1, 2**63, 10**4000, 1.0, True, "3", None])
def test_a_count_is_a_number_that_can_be_written(count):
    """Counts are whole numbers from 0 to 2^63 - 1: what is added up from them can be written as JSON."""
    values = json.loads(FIT.to_json()) | {"peak_memory": count}
    with pytest.raises(VerificationError, match="report: "):
        FitReport.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        {"label_counts": {"-1": 3}},
        {"modules": {"-1": "ab"}},
        {"declined": [{"label": -2, "reason": ""}]},
        {"fallbacks": [{"label": -1, "reason": ""}]},
    ],
)
def test_a_label_is_not_negative(change):
    """Labels count from 0; -1 stands among the declined for a node without images, and nowhere else."""
    with pytest.raises(VerificationError, match="report: malformed fit report"):
        FitReport.from_json(json.dumps(json.loads(FIT.to_json()) | change))


@pytest.mark.parametrize("second", [-1.0, 1e11, 1e308, -1e308, math.inf, math.nan])
def test_an_interval_lies_in_our_time(second):
    """Seconds are of this epoch, so that their differences are finite."""
    for ends in ({"began": second, "ended": 2.0}, {"began": 1.0, "ended": second}):
        with pytest.raises(VerificationError, match="report: "):
            FitReport.from_json(json.dumps(json.loads(FIT.to_json()) | {"work": ends}))


@given(st.text())
def test_what_a_node_says_is_one_printable_line(reason):
    """Whatever a node gives as its reason can be written to a log, a file and a terminal, and is said once only."""
    values = {"label": 1, "reason": f"\ud800\x1b]0;title\x07\n{reason}" * 100}
    text = json.dumps(json.loads(GOOD_REPORT) | {"declined": [values], "fallbacks": [values]})
    report = FitReport.from_json(text)
    for one in (*report.declined, *report.fallbacks):
        assert one.reason.isprintable() and len(one.reason) <= 500 and one.reason.encode()
        assert plain_text(one.reason) == one.reason


LONG = "x" * 10**5


@pytest.mark.parametrize(
    ("kind", "good", "change"),
    [
        (FitReport, FIT, {"partition": LONG}),
        (FitReport, FIT, {"peak_memory": [LONG]}),
        (FitReport, FIT, {"work": {"began": LONG, "ended": 1.0}}),
        (FitReport, FIT, {"label_counts": {"1" + "0" * 4000: 3}}),
        (FitReport, FIT, {"label_counts": {"-1" + "0" * 4000: 3}}),
        (Answer, ANSWER, {"metrics": METRICS | {"accuracy": LONG}}),
        (Forgotten, Forgotten(1, {}, 0), {"fits": LONG}),
    ],
)
def test_a_refusal_is_one_line_whatever_was_sent(kind, good, change):
    """What a node sent is quoted with its first characters alone, since the log and ``metrics.json`` keep every refusal."""
    with pytest.raises(VerificationError) as refusal:
        kind.from_json(json.dumps(json.loads(good.to_json()) | change))
    assert refusal.value.rule == "report" and len(str(refusal.value)) < 300


GOOD_REPORT = FitReport(0, {"1": 3}, {}, (), Interval(0.0, 1.0)).to_json()
