"""Attacks inside a whole run: liars cost the run their own modules, and a lying server gets no work done."""

import dataclasses

import pytest
from flwr.app import ArrayRecord
from local_grid import LocalGrid, tiny
from tampering import sold_twice, with_files

from clients.client_app import app
from ff_flower.messages import file_record
from ff_flower.registry import decode_module, encode_module, module_id
from strategies.server_app import run


def first_replaced(make):
    """Return an edit of report and files: ``make(manifest, state)`` in the place of the first module, reported truly."""

    def edit(report, files):
        (label, name), *_ = report.modules.items()
        data = make(*decode_module(files[name]))
        kept = {other: files[other] for other in report.modules.values() if other != name}
        return dataclasses.replace(report, modules=report.modules | {label: module_id(data)}), {module_id(data): data, **kept}

    return edit


def constant(manifest, state):
    """Return a module that draws grey."""
    return encode_module(state | {"basis": state["basis"] * 0, "mean": state["mean"] * 0}, manifest)


LIARS = {
    0: (first_replaced(lambda manifest, state: b"\x80\x04K\x01." * 9), ["header-length"]),
    1: (
        first_replaced(lambda manifest, state: encode_module(state, manifest.model_copy(update={"root_seed": 9}))),
        ["other-run"],
    ),
    2: (first_replaced(constant), ["constant"]),
    3: (sold_twice, ["duplicate", "duplicate"]),
}


def test_a_run_goes_on_without_the_liars_modules(tmp_path):
    """With a liar for each family of rules the run ends with the five honest modules, and names every rule and its breaker."""

    def tamper(sender, reply):
        liar = sender in LIARS and reply.metadata.message_type == "train"
        return with_files(LIARS[sender][0])(reply) if liar else reply

    spec = tiny(tmp_path)
    directory = run(LocalGrid(app, spec.num_clients, shuffle=2, tamper=tamper), spec)
    metrics = directory.read_json("metrics.json")
    expected = [(partition, rule) for partition, (_, rules) in LIARS.items() for rule in rules]
    assert sorted((one["partition"], one["rule"]) for one in metrics["quarantined"]) == sorted(expected)
    assert len(list(directory.path.glob("modules/*.safetensors"))) == 10 - len(expected)
    assert metrics["missing"] == [] and metrics["seconds"]["vetting"] >= 0
    assert {"server", "client_mean", "student"} <= set(metrics["results"])


@pytest.mark.parametrize(("keeps_name", "rule"), [(True, "digest: the server sent module"), (False, "constant: the server sent")])
def test_a_lying_server_gets_no_answer(keeps_name, rule, tmp_path):
    """A broadcast module that the server should have refused ends every node's work, with the rule in its error."""

    def lied_to(message, context):
        if message.metadata.message_type == "evaluate":
            record = message.content["modules"]
            assert isinstance(record, ArrayRecord)
            files = {name: array.data for name, array in record.items()}
            name, honest = files.popitem()
            data = constant(*decode_module(honest))
            files[name if keeps_name else module_id(data)] = data
            message.content["modules"] = file_record(files)
        return app(message, context)

    spec = tiny(tmp_path, consensus="none")
    metrics = run(LocalGrid(lied_to, spec.num_clients), spec).read_json("metrics.json")
    assert len(metrics["missing"]) == 5 and all(rule in failure["reason"] for failure in metrics["missing"])
    assert list(metrics["results"]) == ["server"]
