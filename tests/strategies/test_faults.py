"""Faults: whatever one node sends or does not send, the run goes on with the rest, names it, and the next session repairs it."""

import json
from dataclasses import replace as said

import pytest
from local_grid import tiny
from tampering import LIAR, at, claim, failing, lost, renamed, report_of, with_files

from ff_flower.errors import RunError
from ff_flower.registry import decode_module, encode_module
from ff_flower.reports import Declined, Fallback, FitReport, Interval


def flip(report, files):
    """Change the last byte of the first module."""
    name = next(iter(files))
    return report, files | {name: files[name][:-1] + bytes([files[name][-1] ^ 1])}


def truncate(report, files):
    """Drop the last byte of the first module."""
    name = next(iter(files))
    return report, files | {name: files[name][:-1]}


def remade(**manifest_changes):
    """Return an edit that rewrites the first module's manifest."""

    def edit(report, files):
        (first, *others) = files.values()
        manifest, state = decode_module(first)
        return renamed(report, [encode_module(state, manifest.model_copy(update=manifest_changes)), *others])

    return edit


def sent_by(one, partition=LIAR):
    """Return an edit that sends what a node sent in another run, under its own partition."""

    def edit(report, files):
        other = FitReport.from_json((one.directory.path / f"nodes/{partition}/fit.json").read_text())
        paths = [one.directory.path / f"modules/{name}.safetensors" for name in other.modules.values()]
        return renamed(report, [path.read_bytes() for path in paths])

    return edit


def under_two_names(report, files):
    """Send the first module's bytes for both labels, once under its own id and once under one that is nobody's."""
    (first, second), data = report.modules, next(iter(files.values()))
    return said(report, modules={first: next(iter(files)), second: "f" * 64}), {next(iter(files)): data, "f" * 64: data}


NOTHING = FitReport(1, {}, {}, (), Interval(0, 0)).to_json()
NODE_FAULTS = {
    "raises": (failing, "MemoryError: no memory left"),
    "is silent": (lost, "no reply in time"),
    "reports garbage": (report_of("garbage"), "report: not JSON"),
    "reports for another": (report_of(NOTHING), "report: it does not name the partition, and once each the files, it came with"),
    "sends files it does not report": (
        with_files(lambda report, files: (report, files | {"a" * 64: b"more"})),
        "report: it does not name the partition, and once each the files, it came with",
    ),
    "keeps back a file it reports": (
        with_files(lambda report, files: (report, dict([*files.items()][:1]))),
        "report: it does not name the partition, and once each the files, it came with",
    ),
    "sends one file under two names": (with_files(under_two_names), "report: one file came under two names"),
    "names a file twice": (
        with_files(lambda report, files: (said(report, modules=report.modules | {"77": next(iter(files))}), files)),
        "report: it does not name the partition, and once each the files, it came with",
    ),
    "has images of no class": (
        with_files(lambda report, files: (said(report, label_counts=report.label_counts | {"10": 3}), files)),
        "report: labels [10]: this run's are 0 to 9",
    ),
    "declines no class": (
        with_files(lambda report, files: (said(report, declined=(Declined(10, "few"),)), files)),
        "report: labels [10]: this run's are 0 to 9",
    ),
    "falls back from no class": (
        with_files(lambda report, files: (said(report, fallbacks=(Fallback(77, "few"),)), files)),
        "report: labels [77]: this run's are 0 to 9",
    ),
    "claims no partition": (claim(99), "partition-id 99: it must be 0 to 4"),
}
MODULE_FAULTS = {  # of one rule each of bytes, manifest and report; all others are in tests/attacks
    "cut short": (truncate, ["offsets"]),
    "no module": (lambda report, files: (report, {name: name[:7].encode() for name in files}), ["size", "size"]),
    "of another owner": (remade(owner="4"), ["owner"]),
    "one bit": (flip, ["report"]),
}


def moved(one, folder):
    """Return a run's spec for another output folder."""
    return one.spec.model_copy(update={"out": str(folder)})


@pytest.mark.parametrize("fault", NODE_FAULTS)
def test_a_node_that_fails_is_named(fault, upload_only, run_tiny, tmp_path):
    """Without a usable reply of one node the run goes on with the rest, and names it with the reason."""
    change, reason = NODE_FAULTS[fault]
    one = run_tiny(moved(upload_only, tmp_path), shuffle=4, tamper=at("train", change))
    ((partition, found),) = [(failure["partition"], failure["reason"]) for failure in one.metrics["missing"]]
    assert partition == LIAR and reason in found
    assert len(one.modules()) == 8 and "server" in one.metrics["results"]


@pytest.mark.parametrize("fault", MODULE_FAULTS)
def test_a_module_that_breaks_a_rule_is_quarantined(fault, upload_only, run_tiny, tmp_path):
    """A module is refused by its rule, named in ``metrics.json``, kept in quarantine, and used nowhere."""
    edit, rules = MODULE_FAULTS[fault]
    one = run_tiny(moved(upload_only, tmp_path), shuffle=4, tamper=at("train", with_files(edit)))
    refused = one.metrics["quarantined"]
    assert [refusal["rule"] for refusal in refused] == rules and {refusal["partition"] for refusal in refused} == {LIAR}
    assert one.metrics["missing"] == [] and len(one.modules()) == 10 - len(rules)
    assert set(one.modules()) < set(upload_only.modules()) and "server" in one.metrics["results"]
    quarantine = list((one.directory.path / "modules/quarantine").glob("*.json"))
    assert sum(len(json.loads(path.read_text())) for path in quarantine) == len(rules)


@pytest.mark.parametrize("change", [failing, with_files(flip)])
def test_the_next_session_asks_the_faulty_node_alone(change, upload_only, run_tiny, tmp_path):
    """After a missing node or a refused module the same spec asks that node alone to fit, and then equals a run without fault."""
    one = run_tiny(moved(upload_only, tmp_path), tamper=at("train", change))
    again = one.again()
    assert again.grid.fitted == [LIAR] and again.modules() == upload_only.modules()
    assert again.scores() == upload_only.scores() and again.metrics["missing"] == again.metrics["quarantined"] == []


def test_what_is_registered_stays_while_its_node_is_away(upload_only, run_tiny, tmp_path):
    """A node's other modules, and what was learned from them, outlast a session in which it sends nothing; it is missing then."""
    one = run_tiny(moved(upload_only, tmp_path), tamper=at("train", with_files(flip)))
    away = one.again(at("train", lost))
    assert (away.modules(), away.scores()) == (one.modules(), one.scores()) and len(away.modules()) == 9
    assert [gap["partition"] for gap in away.metrics["missing"]] == [LIAR]
    assert away.again().modules() == upload_only.modules()


def test_another_runs_modules_are_refused(upload_only, other_seed, run_tiny, tmp_path):
    """Modules of a run with another seed break the rule ``other-run``."""
    tamper = at("train", with_files(sent_by(other_seed)))
    one = run_tiny(moved(upload_only, tmp_path), tamper=tamper)
    assert [refusal["rule"] for refusal in one.metrics["quarantined"]] == ["other-run", "other-run"]


def test_modules_of_other_settings_are_refused(upload_only, other_settings, run_tiny, tmp_path):
    """Modules fitted with settings that this run did not ask for break the rule ``spec``."""
    tamper = at("train", with_files(sent_by(other_settings)))
    one = run_tiny(moved(upload_only, tmp_path), tamper=tamper)
    assert [refusal["rule"] for refusal in one.metrics["quarantined"]] == ["spec", "spec"]


def test_anothers_modules_are_refused_and_stay_its_own(upload_only, run_tiny, tmp_path):
    """A node that sends another's modules as its own is refused, whether their owner's came first or not."""
    for thief, owner in ((LIAR, 0), (0, LIAR)):
        tamper = at("train", with_files(sent_by(upload_only, owner)), thief)
        one = run_tiny(moved(upload_only, tmp_path / str(thief)), tamper=tamper)
        assert [(refusal["rule"], refusal["partition"]) for refusal in one.metrics["quarantined"]] == [("owner", thief)] * 2
        assert len(one.modules()) == 8 and set(one.modules()) < set(upload_only.modules())
        assert [node["labels"] for node in one.metrics["nodes"] if node["partition"] == thief] == [[]]


@pytest.mark.parametrize("shuffle", range(2))
def test_a_partition_that_two_nodes_claim_is_taken_from_neither(shuffle, upload_only, run_tiny, tmp_path):
    """Whatever their ids, of two nodes that claim one partition none is believed, and both are named."""
    one = run_tiny(moved(upload_only, tmp_path), shuffle, tamper=at("train", claim(1)))
    assert [failure["partition"] for failure in one.metrics["missing"]] == [1, LIAR]
    assert all("partition-id 1 is claimed by 2 nodes" in failure["reason"] for failure in one.metrics["missing"])
    assert len(one.modules()) == 6


def test_two_faults_are_told_apart(finished, run_tiny, tmp_path):
    """A node that fails to fit and one that fails to answer are both missing, each for its own reason."""

    def tamper(sender, reply):
        kind = reply.metadata.message_type
        return failing(reply) if (sender, kind) == (1, "train") else lost(reply) if (sender, kind) == (4, "evaluate") else reply

    one = run_tiny(tiny(tmp_path), tamper=tamper)
    assert [(failure["partition"], failure["reason"]) for failure in one.metrics["missing"]] == [
        (1, "MemoryError: no memory left"),
        (4, "no reply in time"),
    ]
    assert set(one.metrics["results"]) == {"server", "client_mean", "product_of_experts", "student"}
    again = one.again()
    assert again.grid.fitted == [1] and again.metrics["missing"] == [] and again.scores() == finished.scores()


def test_too_few_modules_end_the_run_and_name_the_causes(run_tiny, tmp_path):
    """With fewer modules than ``min-modules`` the run ends, saying how many there are, how many it takes, and why."""
    spec = tiny(tmp_path, synthesis__site="server", min_modules=9)
    with pytest.raises(RunError, match=r"8 modules of 8 classes arrived: min-modules is 9.*MemoryError: no memory left"):
        run_tiny(spec, tamper=at("train", failing))


def test_too_few_classes_end_the_run_and_name_the_causes(run_tiny, tmp_path):
    """With fewer classes than ``min-classes`` the run ends, and names the rule that a module broke."""
    spec = tiny(tmp_path, synthesis__site="server", min_classes=10)
    with pytest.raises(RunError, match=r"9 modules of 9 classes arrived.*min-classes is 10.*was reported as"):
        run_tiny(spec, tamper=at("train", with_files(flip)))


def test_a_federation_that_declines_every_class_ends_the_run(run_tiny, tmp_path):
    """Where no class has the images that a module needs, the run ends with that reason."""
    with pytest.raises(RunError, match=r"0 modules of 0 classes arrived.*a module needs at least 1000"):
        run_tiny(tiny(tmp_path, module__min_images=1000))


@pytest.mark.parametrize("method", ["federated-factory", "fedavg", "local"])
@pytest.mark.parametrize(("change", "reason"), [(failing, "MemoryError: no memory left"), (lost, "no reply in time")])
def test_a_federation_of_failures_ends_the_run(method, change, reason, run_tiny, tmp_path):
    """Where every node fails or is silent, the run of any method ends with the reason, and is not done."""
    spec = tiny(tmp_path, method=method)
    with pytest.raises(RunError, match=reason):
        run_tiny(spec, tamper=lambda sender, reply: change(reply))
    assert not list(tmp_path.glob("*/metrics.json"))
