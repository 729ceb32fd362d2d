"""Both transports: the same bytes as results, other bytes on the wire, and a store that is not believed."""

import json
import shutil
from pathlib import Path

import pytest
from local_grid import LocalGrid, tiny

from clients.client_app import app
from clients.resident import drop_resident_sets
from ff_flower.metrics import Ledger
from ff_flower.run_directory import RunDirectory
from strategies.server_app import run


def make(out: Path, transport: str) -> RunDirectory:
    """Run the smallest federation in ``out``; nodes keep nothing of an earlier one."""
    drop_resident_sets()
    spec = tiny(out, transport=transport)
    return run(LocalGrid(app, spec.num_clients, shuffle=3), spec)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return the same run by both transports."""
    return {transport: make(tmp_path_factory.mktemp(transport), transport) for transport in ("inline", "reference")}


def results(directory: RunDirectory) -> dict[str, bytes]:
    """Return the bytes of modules, answers and classifiers, by path."""
    paths = [path for path in directory.path.rglob("*.safetensors") if "cache" not in path.parts]
    return {path.relative_to(directory.path).as_posix(): path.read_bytes() for path in paths}


def test_both_transports_have_the_same_results(both):
    """Modules, logits, classifiers, synthetic digests and the name of the run directory do not depend on the transport."""
    inline, reference = both.values()
    assert results(inline) == results(reference) and len(results(inline)) > 20
    assert inline.path.name == reference.path.name
    answers = [
        [json.loads(path.read_text())["synthetic_digest"] for path in sorted(run.path.glob("nodes/*/answer.json"))]
        for run in both.values()
    ]
    assert answers[0] == answers[1] and len(set(answers[0])) == 1 and len(answers[0]) == 5


def test_the_ledger_tells_what_travelled_and_what_was_read(both):
    """Inline the files travel both ways; by reference 64 digits each and commas do, and the files' bytes were read beside."""
    inline, reference = (Ledger.read(directory.path / "ledger.jsonl").totals() for directory in both.values())
    files = list((both["inline"].path / "modules").glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    assert (inline["modules-up"], inline["modules-down"]) == (size, 5 * size)
    assert (reference["modules-up-read"], reference["modules-down-read"]) == (size, 5 * size)
    assert reference["modules-down"] == 5 * (65 * len(files) - 1) and reference["modules-up"] < 65 * len(files)
    assert not any(name.endswith("-read") for name in inline)
    assert inline["up"] - size == reference["up"] - reference["modules-up"]


def test_a_store_that_lost_a_file_takes_it_from_the_registry(both, tmp_path):
    """A run that is resumed by reference, its store empty or damaged, broadcasts what the registry holds."""
    root = both["inline"].path.parent
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    copy = tmp_path / "copy" / both["inline"].path.name
    for path in [copy / "receipts.json", *copy.glob("nodes/*/answer.json")]:
        if path.name == "receipts.json":
            kept = {stage: one for stage, one in json.loads(path.read_text()).items() if stage.startswith("fit-")}
            path.write_text(json.dumps(kept))
        else:
            path.unlink()
    store = tmp_path / "copy" / "cache" / "modules"
    store.mkdir()
    first = next(copy.glob("modules/*.safetensors"))
    (store / first.name).write_bytes(b"damaged")
    assert results(make(tmp_path / "copy", "reference")) == results(both["inline"])
    assert {path.name for path in store.iterdir()} == {path.name for path in copy.glob("modules/*.safetensors")}


@pytest.mark.parametrize(("rule", "content"), [("digest", b"other bytes"), ("store", None)])
def test_a_hostile_store_is_refused_by_the_server(tmp_path, rule, content):
    """A file that was exchanged or removed after the node wrote it makes that node missing, for the rule; the run goes on."""
    store = tmp_path / "cache" / "modules"

    def tamper(partition, reply):
        if partition == 2 and reply.has_content() and "references" in reply.content:
            for name in reply.content["references"]["modules"].split(","):
                path = store / f"{name}.safetensors"
                path.unlink() if content is None else path.write_bytes(content)
        return reply

    drop_resident_sets()
    spec = tiny(tmp_path, transport="reference", synthesis__site="server")
    metrics = run(LocalGrid(app, 5, tamper=tamper), spec).read_json("metrics.json")
    assert [gap["partition"] for gap in metrics["missing"]] == [2]
    assert metrics["missing"][0]["reason"].startswith(f"{rule}: ") and 'transport = "inline"' in metrics["missing"][0]["reason"]


def test_a_hostile_store_is_refused_by_a_node(tmp_path):
    """A file that is exchanged between broadcast and use makes the nodes' answers missing, for the rule digest."""

    class Exchanging(LocalGrid):
        def push_messages(self, messages):
            messages = list(messages)
            if messages and messages[0].metadata.message_type == "evaluate":
                for path in (tmp_path / "cache" / "modules").glob("*"):
                    path.write_bytes(b"other bytes")
            return super().push_messages(messages)

    drop_resident_sets()
    metrics = run(Exchanging(app, 5), tiny(tmp_path, transport="reference")).read_json("metrics.json")
    assert [gap["partition"] for gap in metrics["missing"]] == list(range(5))
    assert all(gap["reason"].startswith("digest: ") for gap in metrics["missing"])
    assert "server" in metrics["results"]


def test_references_are_read_only_where_the_run_shares_a_store(tmp_path):
    """A node that sends ids in an inline run, or none in a run by reference, is missing."""

    def swap(partition, reply):
        if partition == 1 and reply.has_content():
            reply.content.pop("modules", None)
            reply.content.pop("references", None)
        return reply

    drop_resident_sets()
    for transport, rule in (("inline", "report"), ("reference", "references")):
        spec = tiny(tmp_path / transport, transport=transport, synthesis__site="server")
        [gap] = run(LocalGrid(app, 5, tamper=swap), spec).read_json("metrics.json")["missing"]
        assert gap["partition"] == 1 and gap["reason"].startswith(f"{rule}: ")


def test_what_is_refused_does_not_stay_in_the_store(tmp_path):
    """A module that the server quarantines is gone from the shared store, and the others are there."""
    drop_resident_sets()
    spec = tiny(tmp_path, transport="reference", synthesis__site="server")

    def lie(partition, reply):
        if partition == 3 and reply.has_content():
            account = json.loads(reply.content["report"]["json"])
            account["label_counts"] = {label: count + 1 for label, count in account["label_counts"].items()}
            reply.content["report"]["json"] = json.dumps(account)
        return reply

    directory = run(LocalGrid(app, 5, tamper=lie), spec)
    refused = {path.stem for path in (directory.path / "modules" / "quarantine").glob("*.json")}
    stored = {path.stem for path in (tmp_path / "cache" / "modules").iterdir()}
    assert len(refused) == 2 and stored == {path.stem for path in (directory.path / "modules").glob("*.safetensors")}
