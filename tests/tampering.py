"""What a node may do to its replies and to module files, for the tests of faults and attacks."""

import dataclasses
import json
import struct

from flwr.app import ConfigRecord, MetricRecord
from local_grid import error_reply

from ff_flower.messages import file_record, read_fit_reply
from ff_flower.registry import decode_module, encode_module, module_id
from ff_flower.reports import FitReport

LIAR = 3


def at(kind, change, partition=LIAR):
    """Return a tamper that applies ``change`` to one node's replies of one kind."""

    def tamper(sender, reply):
        return change(reply) if (sender, reply.metadata.message_type) == (partition, kind) else reply

    return tamper


def failing(reply):
    """Let the node's app raise."""
    return error_reply(reply, "Traceback (most recent call last):\n  File x\nMemoryError: no memory left")


def lost(reply):
    """Let the reply never arrive."""


def report_of(text):
    """Return a change that puts ``text`` in the place of the report."""

    def change(reply):
        reply.content["report"] = ConfigRecord({"json": text})
        return reply

    return change


def claim(partition):
    """Return a change by which the node claims another partition."""

    def change(reply):
        reply.content["metrics"] = MetricRecord({"num-examples": 1, "partition-id": partition})
        return reply

    return change


def split_file(data):
    """Return the JSON header and the tensors' bytes of a module file."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_file(header, body):
    """Return a file with this header (an object, or JSON text), padded as safetensors pads it."""
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + body


def with_files(edit):
    """Return a change of report and module files together."""

    def change(reply):
        report, files = read_fit_reply(reply.content)
        report, files = edit(report, files)
        reply.content["modules"] = file_record(files)
        reply.content["report"] = ConfigRecord({"json": report.to_json()})
        return reply

    return change


def renamed(report, datas):
    """Return a report that names ``datas`` truly, and the files."""
    modules = {str(decode_module(data)[0].label): module_id(data) for data in datas}
    counts = {str(decode_module(data)[0].label): decode_module(data)[0].num_examples for data in datas}
    return FitReport(report.partition, counts, modules, (), report.work), {module_id(data): data for data in datas}


def sold_twice(report, files):
    """Send the weights of one module for both labels."""
    (manifest, _), (other, state) = (decode_module(files[name]) for name in report.modules.values())
    copy = encode_module(state, manifest)
    names = {str(manifest.label): module_id(copy), str(other.label): report.modules[str(other.label)]}
    return dataclasses.replace(report, modules=names), {
        module_id(copy): copy,
        names[str(other.label)]: files[names[str(other.label)]],
    }
