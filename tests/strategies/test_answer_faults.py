"""Faults in answers: what a node answers is used where it can be, else named, and the others agree without it."""

import json

import pytest
import torch
from tampering import LIAR, at, claim, failing, lost, report_of

from ff_flower.classifiers import weights_file
from ff_flower.messages import file_record, read_tensors


@pytest.fixture
def unanswered(finished, tmp_path):
    """Return a run whose modules are registered and whose answers are all lost."""
    copy = finished.copy(tmp_path)
    for path in copy.directory.path.glob("nodes/*/answer.json"):
        path.unlink()
    return copy


def answer_with(**metrics):
    """Return a change of an answer's metrics."""

    def change(reply):
        values = json.loads(reply.content["report"]["json"])
        values["metrics"] |= metrics
        return report_of(json.dumps(values))(reply)

    return change


def carrying(record, files):
    """Return a change that puts ``files`` in the place of a record; None removes it."""

    def change(reply):
        del reply.content[record]
        if files is not None:
            reply.content[record] = file_record(files)
        return reply

    return change


def answer_of(**values):
    """Return a change of an answer."""
    return lambda reply: report_of(json.dumps(json.loads(reply.content["report"]["json"]) | values))(reply)


_HEADER = json.dumps({"w": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}).encode()
UNKNOWN_TYPE = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(4)


ANSWER_FAULTS = {
    "raises": (failing, "MemoryError: no memory left"),
    "is silent": (lost, "no reply in time"),
    "reports garbage": (report_of("garbage"), "report: not JSON"),
    "answers for nobody": (claim(99), "partition-id 99: it must be 0 to 4"),
    "knows three classes": (answer_with(per_class_recall=[1.0] * 3), "report: an answer with 3 recalls; there are 10 classes"),
    "claims too much": (answer_with(accuracy=1.5), "report: malformed answer"),
    "claims nothing": (answer_with(accuracy=None), "report: malformed answer"),
    "keeps its logits back": (carrying("logits", None), "report: an answer came with files ['weights']"),
    "sends a path": (carrying("logits", {"../../../escaped": b""}), "report: an answer came with files ['../../../escaped'"),
    "sends no tensors": (carrying("weights", {"weights": b"garbage"}), "safetensors:"),
    "sends numbers of an unknown type": (carrying("weights", {"weights": UNKNOWN_TYPE}), "safetensors:"),
    "worked for longer than there is time": (answer_of(training={"began": -1e308, "ended": 1e308}), "report: malformed answer"),
}


@pytest.mark.parametrize("fault", ANSWER_FAULTS)
def test_a_node_without_a_usable_answer_is_named(fault, unanswered, finished):
    """An answer that breaks a rule is kept nowhere and counted nowhere; the rest agree without it."""
    change, reason = ANSWER_FAULTS[fault]
    one = unanswered.again(at("evaluate", change))
    ((partition, found),) = [(failure["partition"], failure["reason"]) for failure in one.metrics["missing"]]
    assert partition == LIAR and reason in found
    assert not (one.directory.path / f"nodes/{LIAR}/answer.json").exists()
    assert not list(one.directory.path.parent.parent.rglob("*escaped*"))
    assert set(one.metrics["results"]) == set(finished.metrics["results"])


def test_the_next_session_asks_for_the_missing_answer_alone(unanswered, finished):
    """After one lost answer the same spec asks that node alone to answer, and then equals a run without fault."""
    again = unanswered.again(at("evaluate", lost)).again()
    assert [asked for asked in again.grid.asked if asked[0] == "evaluate"] == [("evaluate", LIAR)]
    assert again.metrics["missing"] == [] and again.scores() == finished.scores()


def test_a_node_that_fails_when_its_modules_are_known_is_named(unanswered):
    """A node whose modules an earlier session kept, and which is gone now, is missing among the answers, with its reason."""
    one = unanswered.again(at("train", failing))
    assert one.metrics["missing"] == [{"partition": LIAR, "reason": "MemoryError: no memory left"}]
    assert len(one.modules()) == 10 and "student" in one.metrics["results"]


USELESS_LOGITS = {
    "of another set": ({"logits": torch.zeros(3, 10)}, "'logits' has shape (3, 10); this run's has (100, 10)"),
    "not finite": ({"logits": torch.full((100, 10), torch.nan).half()}, "logits: NaN or infinity"),
    "at full precision": ({"logits": torch.zeros(100, 10)}, "a tensor is of torch.float32; all of them must be of torch.float16"),
    "at an eighth": ({"logits": torch.zeros(100, 10).to(torch.float8_e4m3fn)}, "a tensor is of torch.float8_e4m3fn"),
    "under another name": ({"others": torch.zeros(100, 10)}, "'logits' has shape None"),
}


@pytest.mark.parametrize("fault", USELESS_LOGITS)
def test_a_node_whose_logits_cannot_be_pooled_is_missing(fault, unanswered, finished):
    """Logits of another shape, name or dtype, or not finite, are of no use: the run is partial, and goes on without them."""
    tensors, reason = USELESS_LOGITS[fault]
    one = unanswered.again(at("evaluate", carrying("logits", {"logits": weights_file(tensors)})))
    ((partition, found),) = [(failure["partition"], failure["reason"]) for failure in one.metrics["missing"]]
    assert partition == LIAR and reason in found and one.metrics["notes"] == []
    again = one.again()
    assert [asked for asked in again.grid.asked if asked[0] == "evaluate"] == [("evaluate", LIAR)]
    assert again.metrics["missing"] == [] and again.scores() == finished.scores()


def test_without_any_usable_logits_there_is_no_student(unanswered):
    """Where no node answers anything of use, what the server makes of the modules alone is there, and all nodes are missing."""
    useless = carrying("logits", {"logits": weights_file(USELESS_LOGITS["not finite"][0])})
    one = unanswered.again(lambda sender, reply: useless(reply) if reply.metadata.message_type == "evaluate" else reply)
    assert len(one.metrics["missing"]) == 5 and set(one.metrics["results"]) == {"server"}


@pytest.mark.parametrize("damage", [lambda t: t * torch.nan, lambda t: t[..., :1], lambda t: t[None], torch.Tensor.double])
def test_a_node_whose_classifier_is_none_is_missing(damage, unanswered):
    """Weights that are not finite, of another dtype, or make another network, take no part in the product of experts."""

    def change(reply):
        tensors = read_tensors(reply.content["weights"]["weights"].data)
        return carrying("weights", {"weights": weights_file({name: damage(t) for name, t in tensors.items()})})(reply)

    one = unanswered.again(at("evaluate", change))
    assert [failure["partition"] for failure in one.metrics["missing"]] == [LIAR]
    assert 0 <= one.metrics["results"]["product_of_experts"]["auroc"] <= 1


def test_a_set_that_differs_by_rounding_is_pooled_and_noted(unanswered, finished):
    """A node that built another synthetic set takes part all the same, and the notes say so."""

    def change(reply):
        values = json.loads(reply.content["report"]["json"])
        return report_of(json.dumps(values | {"synthetic_digest": "0" * 64}))(reply)

    one = unanswered.again(at("evaluate", change))
    (note,) = one.metrics["notes"]
    assert f"nodes [{LIAR}] agree with the server's up to rounding only" in note
    assert one.scores() == finished.scores()


def test_numbers_that_lead_to_none_end_nothing(unanswered, finished):
    """Whatever follows from finite weights and logits, every result is there and has scores."""

    def huge(reply):
        for record in ("weights", "logits"):
            tensors = read_tensors(reply.content[record][record].data)
            grown = {name: torch.full_like(tensor, torch.finfo(tensor.dtype).max) for name, tensor in tensors.items()}
            reply = carrying(record, {record: weights_file(grown)})(reply)
        return reply

    one = unanswered.again(at("evaluate", huge))
    assert one.metrics["missing"] == [] and set(one.metrics["results"]) == set(finished.metrics["results"])
    for result in ("product_of_experts", "student"):
        assert one.metrics["results"][result]["accuracy"] > 0 and one.metrics["results"][result]["auroc"] is not None
