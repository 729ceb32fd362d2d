"""Resuming: what stands verified is not made again, what is lost comes back byte for byte, and nothing else changes."""

import time
from dataclasses import replace

import pytest
from local_grid import tiny
from safetensors.torch import load_file, save_file
from tampering import at, failing, with_files

from ff_flower.errors import RunError
from ff_flower.registry import ModuleRegistry, SignaturePolicy
from ff_flower.reports import FitReport, Interval
from ff_flower.verification import verify_run


def stamps(directory):
    """Return the time of the last change of every output."""
    return {path: path.stat().st_mtime_ns for path in directory.outputs()}


def test_a_finished_run_asks_no_node_and_touches_no_file(finished, tmp_path):
    """The same spec once more sends no message and leaves every output as it was, to the time of its last change."""
    copy = finished.copy(tmp_path)
    before = stamps(copy.directory)
    again = copy.again()
    assert again.grid.asked == [] and stamps(again.directory) == before


def test_a_lost_module_is_fitted_by_its_node_alone(finished, tmp_path):
    """Without one module file only its owner fits again, the same bytes come back, and no answer is asked for."""
    copy = finished.copy(tmp_path)
    module = next(iter(ModuleRegistry(copy.directory.path / "modules")))
    module.path.unlink()
    again = copy.again()
    assert again.grid.fitted == [int(module.manifest.owner)]
    assert {kind for kind, _ in again.grid.asked} == {"train"}
    assert again.modules() == finished.modules() and again.scores() == finished.scores()


@pytest.mark.parametrize("began", [0.0, 1e10])
def test_collecting_takes_no_longer_than_the_session(began, finished, tmp_path):
    """Neither the work of an earlier session nor a node's own clock makes the time of collecting longer, or less than none."""
    copy = finished.copy(tmp_path)
    module = next(iter(ModuleRegistry(copy.directory.path / "modules")))
    module.path.unlink()
    for partition in set(range(5)) - {int(module.manifest.owner)}:
        path = copy.directory.path / f"nodes/{partition}/fit.json"
        report = FitReport.from_json(path.read_text())
        path.write_text(replace(report, work=Interval(1.0, 2.0)).to_json())
        receipt = copy.directory.receipts()[f"fit-{partition}"]
        copy.directory.finish(f"fit-{partition}", receipt["inputs"], [copy.directory.path / name for name in receipt["outputs"]])
    slow = with_files(lambda report, files: (replace(report, work=Interval(began, began)), files))
    started = time.time()
    again = copy.again(at("train", slow, int(module.manifest.owner)))
    assert again.grid.fitted == [int(module.manifest.owner)]
    assert 0 <= again.metrics["steps"]["collect"] <= time.time() - started + 0.01


def test_a_changed_module_is_set_aside_and_fitted_again(finished, tmp_path):
    """After one changed byte a module file lies in quarantine under the rule ``digest``, and its owner sends it again."""
    copy = finished.copy(tmp_path)
    module = list(ModuleRegistry(copy.directory.path / "modules"))[3]
    data = bytearray(module.path.read_bytes())
    data[-1] ^= 1
    module.path.write_bytes(data)
    again = copy.again()
    assert again.grid.fitted == [int(module.manifest.owner)]
    assert again.modules() == finished.modules() and again.scores() == finished.scores()
    (refusal,) = ModuleRegistry(copy.directory.path / "modules").quarantined()
    assert (refusal.rule, refusal.source) == ("digest", module.path.name)


def test_other_images_are_not_mixed_with_those_of_a_run(finished, tmp_path):
    """A run of which anything was made of other images is not continued, nor is it passed off as a run of these."""
    copy = finished.copy(tmp_path)
    held = copy.directory.read_json("images.json")
    copy.directory.write_json("images.json", {"sha256": "0" * 64})
    before = stamps(copy.directory)
    with pytest.raises(RunError, match=r"images of digits are not those .*set out or FF_RUNS"):
        copy.again()
    assert stamps(copy.directory) == before
    (copy.directory.path / "images.json").unlink()
    assert copy.again().directory.read_json("images.json") == held


def test_where_a_run_was_made_stands_until_something_is_made_again(finished, tmp_path):
    """A run that is whole keeps the record of its environment; one that goes on notes where that is."""
    copy = finished.copy(tmp_path)
    copy.directory.write_json("environment.json", {"made": "elsewhere"})
    copy.again()
    assert copy.directory.read_json("environment.json") == {"made": "elsewhere"}
    (copy.directory.path / "classifiers/student.safetensors").unlink()
    copy.again()
    assert "source_digest" in copy.directory.read_json("environment.json")


def test_a_student_follows_its_teachers(finished, tmp_path):
    """A student taught by other logits than it was before is not kept."""
    copy = finished.copy(tmp_path)
    path = copy.directory.path / "nodes/2/logits.safetensors"
    save_file({"logits": load_file(path)["logits"].flip(0).contiguous()}, path)
    stage = copy.directory.receipts()["answer-2"]
    copy.directory.finish("answer-2", stage["inputs"], [copy.directory.path / name for name in stage["outputs"]])
    again = copy.again()
    assert again.grid.asked == []
    names = {name for name, data in again.files("classifiers").items() if data != finished.files("classifiers")[name]}
    assert names == {"classifiers/student.safetensors"}


def test_an_answer_to_other_modules_does_not_outlast_them(run_tiny, tmp_path):
    """Where a node does not answer to the modules of now, what it answered to fewer is gone, and the run is in order."""
    one = run_tiny(tiny(tmp_path), tamper=at("train", failing))
    assert (one.directory.path / "nodes/2/answer.json").is_file()
    again = one.again(at("evaluate", failing, 2))
    assert [gap["partition"] for gap in again.metrics["missing"]] == [2]
    assert "answer-2" not in again.directory.receipts() and set((again.directory.path / "nodes/2").iterdir()) == {
        again.directory.path / "nodes/2/fit.json"
    }
    assert [finding for finding in verify_run(again.directory.path, SignaturePolicy())[0] if finding.broken] == []


@pytest.mark.parametrize("name", ["student", "server"])
def test_a_lost_classifier_is_rebuilt_alone(name, finished, tmp_path):
    """Without one of the server's classifiers no node is asked, that one is fitted to the same bytes, and the rest stays."""
    copy = finished.copy(tmp_path)
    before = stamps(copy.directory)
    lost = copy.directory.path / f"classifiers/{name}.safetensors"
    lost.unlink()
    again = copy.again()
    assert again.grid.asked == []
    assert again.files("classifiers") == finished.files("classifiers")
    rewritten = {path.name for path, stamp in stamps(again.directory).items() if stamp != before[path]}
    assert lost.name in rewritten and not [file for file in rewritten if file.endswith(".safetensors") and file != lost.name]
    assert again.metrics["results"] == finished.metrics["results"] and again.metrics["bytes"] == finished.metrics["bytes"]


def test_a_lost_answer_is_asked_of_its_node_alone(finished, tmp_path):
    """Without one node's logits only that node answers again, with the same bytes."""
    copy = finished.copy(tmp_path)
    (copy.directory.path / "nodes/2/logits.safetensors").unlink()
    again = copy.again()
    assert [asked for asked in again.grid.asked if asked[0] == "evaluate"] == [("evaluate", 2)] and again.grid.fitted == []
    assert again.files("nodes") == finished.files("nodes") and again.scores() == finished.scores()


@pytest.mark.parametrize("name", ["metrics.json", "ledger.jsonl", "label_distribution.png"])
def test_a_lost_record_is_written_again(name, finished, tmp_path):
    """Without one of its records a run is not done: the record comes back, and no node fits anything for it."""
    copy = finished.copy(tmp_path)
    (copy.directory.path / name).unlink()
    again = copy.again()
    assert again.grid.fitted == [] and (again.directory.path / name).is_file() and again.scores() == finished.scores()


def test_an_interrupted_run_goes_on_where_it_stopped(finished, run_tiny, tmp_path):
    """A run that dies while nodes answer has kept modules and ledger: the next fits nothing, and ends like an unbroken one."""

    def interrupt(partition, reply):
        if reply.metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return reply

    spec = tiny(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(spec, tamper=interrupt)
    again = run_tiny(spec, shuffle=3)
    assert again.grid.fitted == []
    assert {p for kind, p in again.grid.asked if kind == "evaluate"} == set(range(5))
    assert again.files("modules", "nodes", "classifiers") == finished.files("modules", "nodes", "classifiers")
    assert again.metrics["results"] == finished.metrics["results"] and again.metrics["bytes"] == finished.metrics["bytes"]


def test_a_module_that_no_report_names_is_withdrawn(upload_only, other_settings, tmp_path):
    """A module left by an interrupted session, which its owner does not name any more, is no part of the run or its cache."""
    copy = upload_only.copy(tmp_path)
    name, data = next(iter(other_settings.modules().items()))
    copy.directory.write(f"modules/{name}", data)
    drawn = tmp_path / "copy" / "cache" / "samples" / name.partition(".")[0] / "0-64.npy"
    drawn.parent.mkdir(parents=True)
    drawn.write_bytes(b"samples")
    (copy.directory.path / "metrics.json").unlink()
    again = copy.again()
    assert again.modules() == upload_only.modules() and again.scores() == upload_only.scores() and not drawn.parent.exists()
