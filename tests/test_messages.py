"""Messages: every record survives the wire bit for bit, and a record that is not what it must be is refused."""

import json
import pickle
import struct

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import example, given
from hypothesis import strategies as st

from ff_flower import messages
from ff_flower.classifiers import weights_file
from ff_flower.config import RunSpec, from_run_config
from ff_flower.environment import source_digest
from ff_flower.errors import ConfigError, RunError, VerificationError
from ff_flower.reports import Answer, Declined, FitReport, Interval

FILES = st.dictionaries(st.text("0123456789abcdef", min_size=1, max_size=64), st.binary(max_size=200), max_size=4)
METRICS = {"accuracy": 0.5, "auroc": 0.75, "macro_f1": 0.25, "per_class_recall": [1.0, None]}
ANSWER = Answer(3, METRICS, "cd" * 32, Interval(1.0, 2.0), Interval(0.0, 1.0))


def over_the_wire(content):
    """Return ``content`` after Flower's own serialization to bytes and back."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


@given(st.integers(0, 2**63 - 1), st.sets(st.integers(0, 100)), st.integers(1, 100))
def test_a_request_survives_the_wire(seed, partitions, server_round):
    """Spec, wanted partitions and round arrive as they were asked, to the last bit of every float."""
    spec = RunSpec(seed=seed, timeout=0.1 + 0.2, averaging={"proximal_mu": 1e-300})
    request = messages.read_request(over_the_wire(messages.request_records(spec, partitions, server_round)))
    assert request == messages.Request(spec, frozenset(partitions), server_round)


def test_other_code_is_refused_with_its_remedy():
    """A node that runs other code than the server refuses to work, and says how to start both from one checkout."""
    content = messages.request_records(RunSpec(), [0])
    content["request"]["source-digest"] = "0" * 64
    with pytest.raises(RunError, match=r"other code.*stop it and start it from the checkout"):
        messages.read_request(content)


@pytest.mark.parametrize("record", ["spec", "request"])
def test_a_request_without_its_records_is_refused(record):
    """A message that lacks a record, or has a record of another type in its place, is no request."""
    content = messages.request_records(RunSpec(), [0])
    del content[record]
    with pytest.raises(RunError, match="a request has 'spec' and 'request'"):
        messages.read_request(content)
    content[record] = MetricRecord({"server-round": 1})
    with pytest.raises(RunError, match="a request has 'spec' and 'request'"):
        messages.read_request(content)


def test_a_request_with_an_unknown_setting_is_refused():
    """A spec is validated again where it arrives: an unknown key or a value out of range ends there."""
    content = messages.request_records(RunSpec(), [0])
    content["spec"]["module.steps"] = 3
    content["spec"]["num-clients"] = 0
    with pytest.raises(ConfigError, match=r"module\.steps.*\n.*num-clients"):
        messages.read_request(content)
    assert from_run_config(RunSpec().flat()) == RunSpec()


@given(FILES)
def test_files_survive_the_wire_bit_for_bit(files):
    """Files arrive under their names with the bytes that were sent, and their payload is the sum of their sizes."""
    content = over_the_wire(RecordDict({"modules": messages.file_record(files)}))
    assert messages.read_files(content, "modules") == files
    assert messages.count_bytes(content, "modules") == sum(len(data) for data in files.values())


def test_an_absent_record_holds_no_files():
    """Without the record there are no files and no bytes, whatever other records there are."""
    content = RecordDict({"modules": ConfigRecord({"a": 1})})
    for record in ("modules", "logits"):
        assert messages.read_files(content, record) == {} and messages.count_bytes(content, record) == 0


@pytest.mark.parametrize("stype", ["numpy.ndarray", "", "pickle"])
def test_an_array_of_another_stype_is_refused(stype):
    """Only arrays that are declared files are read as files; nothing tries to make sense of others."""
    array = Array(dtype="uint8", shape=(2,), stype=stype, data=b"ab")
    with pytest.raises(VerificationError, match="file-type: array 'a'"):
        messages.read_files(RecordDict({"modules": ArrayRecord({"a": array})}), "modules")


def test_a_file_over_the_limit_is_refused():
    """A file of exactly the limit is read, one of a byte more is refused by the rule ``size``."""
    content = RecordDict({"modules": messages.file_record({"a": b"12345"})})
    assert messages.read_files(content, "modules", max_bytes=5) == {"a": b"12345"}
    with pytest.raises(VerificationError, match="size: file 'a' has 5 bytes, at most 4"):
        messages.read_files(content, "modules", max_bytes=4)


def test_a_refused_file_is_named_in_one_line():
    """Name and type of what a node sent are quoted with their first characters alone."""
    array = Array(dtype="uint8", shape=(2,), stype="b" * 10**5, data=b"ab")
    for record in (ArrayRecord({"a" * 10**5: array}), messages.file_record({"a" * 10**5: b"ab"})):
        with pytest.raises(VerificationError) as refusal:
            messages.read_files(RecordDict({"modules": record}), "modules", max_bytes=1)
        assert len(str(refusal.value)) < 300


@given(FILES, st.integers(0, 10**6))
def test_a_fit_reply_survives_the_wire(files, images):
    """Report and module files arrive as they were sent, with the sender and its number of images beside them."""
    report = FitReport(3, {"7": images}, {"7": "ab"}, (Declined(2, "1 image"),), Interval(0.5, 1.5))
    content = over_the_wire(messages.fit_reply(report, files))
    assert messages.read_fit_reply(content) == (report, files)
    assert dict(content["metrics"]) == {"num-examples": images, "partition-id": 3}


def test_an_answer_survives_the_wire():
    """An answer arrives with its logits at half precision and its weights as they were."""
    logits, weights = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), {"w": torch.tensor([1e-30, 3.0])}
    answer, files = messages.read_answer(over_the_wire(messages.answer_reply(ANSWER, 9, logits, weights)))
    assert answer == ANSWER and set(files) == {"logits", "weights"}
    assert torch.equal(messages.read_tensors(files["logits"])["logits"], logits.half())
    assert torch.equal(messages.read_tensors(files["weights"])["w"], weights["w"])


@pytest.mark.parametrize(("logits", "weights"), [(None, None), (torch.zeros(1, 2), None), (None, {"w": torch.zeros(1)})])
def test_an_answer_brings_only_what_was_asked_for(logits, weights):
    """Logits and weights that the consensus does not need are not on the wire."""
    content = messages.answer_reply(ANSWER, 9, logits, weights)
    asked = {name for name, value in (("logits", logits), ("weights", weights)) if value is not None}
    assert set(content.array_records) == asked == set(messages.read_answer(content)[1])


def test_logits_cost_two_bytes_each():
    """Logits of n images and K classes take 2nK bytes on the wire, and a header of less than 200."""
    content = messages.answer_reply(ANSWER, 9, torch.zeros(1000, 10), None)
    assert 20_000 < messages.count_bytes(content, "logits") < 20_200


def test_a_reply_without_a_report_is_refused():
    """A reply with no report, one of another type, or one without text is refused by the rule ``report``."""
    for record in (None, MetricRecord({"json": 1}), ConfigRecord({"json": 1}), ConfigRecord({"text": "{}"})):
        content = messages.fit_reply(FitReport(0, {}, {}, (), Interval(0, 0)), {})
        del content["report"]
        if record is not None:
            content["report"] = record
        for read in (messages.read_fit_reply, messages.read_answer):
            with pytest.raises(VerificationError) as refusal:
                read(content)
            assert refusal.value.rule == "report"


def test_a_node_with_nothing_to_send_says_who_it_is():
    """A reply without files holds the partition and no examples, and is no fit report."""
    content = over_the_wire(RecordDict(messages.told(4)))
    assert dict(content["metrics"]) == {"num-examples": 0, "partition-id": 4}
    with pytest.raises(VerificationError, match="report: not JSON"):
        messages.read_fit_reply(content)


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda data: struct.pack("<Q", len(data)) + data))
@example(struct.pack("<Q", 2) + b"{}")
def test_bytes_that_are_no_safetensors_are_refused(data):
    """Bytes of a node are tensors in the safetensors format or are refused, naming the format."""
    with pytest.raises(VerificationError) as refusal:
        messages.read_tensors(data)
    assert refusal.value.rule == "safetensors"


def test_the_source_digest_names_the_code():
    """A request carries the digest of this code, so that a node of the same code accepts it."""
    assert messages.request_records(RunSpec(), [])["request"]["source-digest"] == source_digest()
    assert len(source_digest()) == 64 and messages.read_request(messages.request_records(RunSpec(), [])).partitions == frozenset()


def test_tensors_are_read_without_metadata():
    """A weights file read back is the state it was made of."""
    state = {"a": torch.arange(3), "b": torch.zeros(0)}
    read = messages.read_tensors(weights_file(state))
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items()) and set(read) == set(state)


def test_files_are_handed_over_without_a_copy():
    """Serialized as Ray does it, a file's bytes are a buffer beside the message, the file's own memory, and arrive as bytes."""
    data = b"a module file" * 1000
    record, buffers = messages.file_record({"a": data}), []
    text = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    assert len(text) < 1000 and sum(buffer.raw().nbytes for buffer in buffers) == len(data)
    back = pickle.loads(text, buffers=buffers)["a"].data  # noqa: S301 - our own
    assert type(back) is bytes and back == data
    assert pickle.loads(pickle.dumps(record))["a"].data == data  # noqa: S301 - our own


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3", "X"])
@pytest.mark.parametrize("shape", [[4], [0, 2**64 - 1], [2**40]])
def test_tensors_that_torch_does_not_have_are_refused(dtype, shape):
    """A file of types or shapes that cannot be read breaks the rule ``safetensors``, and nothing else happens."""
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()
    with pytest.raises(VerificationError, match=r"^safetensors: "):
        messages.read_tensors(len(header).to_bytes(8, "little") + header + bytes(4))
