"""The student: which images it learns from, and from whom."""

import pytest
import torch
from local_grid import tiny
from safetensors.torch import load_file

from ff_flower.accelerator import torch_threads
from ff_flower.classifiers import agreeing, product_of_experts
from ff_flower.synthesis import synthesize
from strategies import consensus

LABELS = torch.arange(10).repeat_interleave(10)  # of the tiny run's synthetic set


def left_out(one, least):
    """Return how many images the answers' pooled probability leaves out."""
    logits = [load_file(one.directory.path / f"nodes/{p}/logits.safetensors")["logits"] for p in range(5)]
    return int((~agreeing(product_of_experts(logits), LABELS, least)[0]).sum())


def test_images_without_agreement_are_left_out_and_counted(finished, run_tiny, tmp_path):
    """The student's result says how many images the pooled classifiers doubted, and it is trained without them."""
    least = 0.1
    one = run_tiny(tiny(tmp_path, consensus="logits", distillation__min_agreement=least))
    count = one.metrics["results"]["student"]["images_left_out"]
    assert 0 < count < 100 and count == left_out(one, least)
    assert finished.metrics["results"]["student"]["images_left_out"] == 0
    assert one.files("nodes")["nodes/0/logits.safetensors"] == finished.files("nodes")["nodes/0/logits.safetensors"]
    assert one.files("classifiers") != finished.files("classifiers")
    assert one.again().metrics["results"] == one.metrics["results"]


def test_classes_on_which_nobody_agrees_are_kept_whole_and_noted(finished, run_tiny, tmp_path):
    """Where agreement is never reached the student is that of a run without the filter, and each class has its note."""
    one = run_tiny(tiny(tmp_path, consensus="logits", distillation__min_agreement=1.0))
    student = "classifiers/student.safetensors"
    assert one.files("classifiers")[student] == finished.files("classifiers")[student]
    assert one.metrics["results"]["student"]["images_left_out"] == 0
    assert [note.split(":")[0] for note in one.metrics["notes"]] == [f"class '{label}' is kept whole" for label in range(10)]


@pytest.mark.parametrize(("site", "threads"), [("client", 1), ("server", 2)])
def test_the_server_samples_as_nodes_do(site, threads, run_tiny, tmp_path, monkeypatch):
    """Where nodes make the synthetic set too the server draws it with a node's threads, else with its own."""
    seen = []

    def counting(*arguments):
        seen.append(torch.get_num_threads())
        return synthesize(*arguments)

    conclude = consensus.Consensus.conclude

    def on_two_threads(made):
        with torch_threads(2):  # nodes of this process have left it on theirs
            conclude(made)

    monkeypatch.setattr(consensus, "synthesize", counting)
    monkeypatch.setattr(consensus.Consensus, "conclude", on_two_threads)
    run_tiny(tiny(tmp_path, synthesis__site=site, server_threads=2))
    assert seen == [threads]


def test_a_student_of_hard_labels_needs_no_teacher(run_tiny, tmp_path):
    """With hard labels alone the student is the same whatever the nodes' pooled logits or weights say."""
    changes = {"distillation__hard_labels": 1.0, "synthesis__own_class": 0.5}
    first = run_tiny(tiny(tmp_path / "a", consensus="logits", **changes))
    second = run_tiny(tiny(tmp_path / "b", consensus="logits", **(changes | {"synthesis__own_class": 0.0})))
    assert first.files("nodes") != second.files("nodes")
    student = "classifiers/student.safetensors"
    assert first.files("classifiers")[student] == second.files("classifiers")[student]
