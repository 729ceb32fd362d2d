"""FederatedFactory as a whole: what a run writes, what it costs, that it repeats, and that it resumes."""

import json
import math

import pytest
from local_grid import LocalGrid, tiny
from safetensors.numpy import load_file

from clients.client_app import app
from ff_flower.config import from_run_config
from ff_flower.errors import RunError
from ff_flower.run_directory import RunDirectory
from strategies.server_app import run

MODEL_RESULTS = {"server", "client_mean", "product_of_experts", "student"}


def test_a_run_writes_every_file_that_its_directory_promises(finished):
    """Each file named in the run directory's docstring exists, per module and per node where it says so."""
    path = finished.directory.path
    promised = ["spec.json", "environment.json", "metrics.json", "ledger.jsonl", "receipts.json", "progress.json"]
    promised += ["images.json", "label_distribution.json", "label_distribution.png"]
    promised += [f"classifiers/{name}.safetensors" for name in ("server", "student")]
    promised += [f"nodes/{p}/{name}" for p in range(5) for name in ("fit.json", "answer.json")]
    promised += [f"nodes/{p}/{name}.safetensors" for p in range(5) for name in ("logits", "weights")]
    promised += [f"modules/{name}" for name in finished.modules()]
    promised += [f"modules/{name.removesuffix('.safetensors')}.png" for name in finished.modules()]
    assert len(finished.modules()) == 10
    assert {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} == set(promised)
    assert (path.parent / "latest").resolve() == path
    assert all(list((path.parent / "cache" / folder).iterdir()) for folder in ("partitions", "samples"))


def test_metrics_have_the_keys_that_others_rely_on(finished):
    """``metrics.json`` has method, dataset, partition, seed, results with shares in [0, 1], seconds and bytes."""
    metrics = finished.metrics
    named = {key: metrics[key] for key in ("method", "dataset", "partition", "seed", "rounds", "num_clients")}
    assert named == {
        "method": "federated-factory",
        "dataset": "digits",
        "partition": "pathological",
        "seed": 0,
        "rounds": 1,
        "num_clients": 5,
    }
    assert set(metrics["results"]) == MODEL_RESULTS
    for result in metrics["results"].values():
        assert all(0 <= result[key] <= 1 for key in ("accuracy", "auroc", "macro_f1"))
        assert len(result["per_class_recall"]) == 10 and all(0 <= recall <= 1 for recall in result["per_class_recall"])
    stages = {"fit", "client-synthesis", "client-training", "server-synthesis", "server", "student", "vetting"}
    assert set(metrics["seconds"]) == {"total", *stages}
    assert all(math.isfinite(value) and value >= 0 for value in metrics["seconds"].values())
    assert {metrics[key] == [] for key in ("missing", "quarantined", "declined", "fallbacks", "notes")} == {True}
    assert 50e6 < metrics["peak_memory"] < 64e9
    assert metrics["spec_digest"] == finished.spec.digest()


def test_the_written_spec_is_the_run(finished):
    """``spec.json`` read back as a run configuration gives the spec."""
    written = finished.directory.read_json("spec.json")
    assert from_run_config({key: written[key] for key in finished.spec.flat()}) == finished.spec


def test_label_distribution_counts_the_training_images(finished):
    """``label_distribution.json`` holds, per node and class, the images that the node reports."""
    counts = finished.directory.read_json("label_distribution.json")["counts"]
    for partition, row in enumerate(counts):
        reported = finished.directory.read_json(f"nodes/{partition}/fit.json")["label_counts"]
        assert {str(label): count for label, count in enumerate(row) if count} == reported


def test_bytes_are_the_sizes_of_the_files(finished):
    """Modules go up once and down to every node, logits and weights go up; each costs the bytes of its files."""
    modules = sum(map(len, finished.modules().values()))
    nodes = finished.files("nodes")
    logits = sum(len(data) for name, data in nodes.items() if name.endswith("logits.safetensors"))
    weights = sum(len(data) for name, data in nodes.items() if name.endswith("weights.safetensors"))
    assert finished.metrics["bytes"] == {
        "up": modules + logits + weights,
        "down": 5 * modules,
        "modules-up": modules,
        "modules-down": 5 * modules,
        "logits-up": logits,
        "weights-up": weights,
    }


def test_every_result_names_the_bytes_that_it_needed(finished):
    """The server's model needs the upload alone, the clients' the broadcast too, each consensus its own second exchange."""
    sent, results = finished.metrics["bytes"], finished.metrics["results"]
    up, down = sent["modules-up"], sent["modules-down"]
    assert results["server"]["bytes"] == {"up": up, "down": 0}
    assert results["client_mean"]["bytes"] == {"up": up, "down": down}
    assert results["product_of_experts"]["bytes"] == {"up": up + sent["weights-up"], "down": down}
    assert results["student"]["bytes"] == {"up": up + sent["logits-up"], "down": down}


def test_the_ledger_holds_every_transfer(finished):
    """``ledger.jsonl`` has one line per payload and node, and its sum is what ``metrics.json`` says."""
    lines = [json.loads(line) for line in (finished.directory.path / "ledger.jsonl").read_text().splitlines()]
    kinds = {("up", "modules"), ("down", "modules"), ("up", "logits"), ("up", "weights")}
    assert {(line["direction"], line["what"], line["partition"]) for line in lines} == {
        (*kind, p) for kind in kinds for p in range(5)
    }
    assert len(lines) == 20
    for direction in ("up", "down"):
        total = sum(line["num_bytes"] for line in lines if line["direction"] == direction)
        assert total == finished.metrics["bytes"][direction]


def test_a_student_weighs_as_much_as_an_expert(finished):
    """Student, server's model and the nodes' classifiers are one network: the same tensors by name and shape."""
    files = finished.files("nodes", "classifiers")
    networks = [name for name in files if not name.endswith("logits.safetensors")]
    shapes = [{key: array.shape for key, array in load_file(finished.directory.path / name).items()} for name in networks]
    assert len(networks) == 7 and all(shape == shapes[0] for shape in shapes)


def test_the_servers_site_needs_one_upload_and_nothing_else(upload_only):
    """With ``synthesis.site = server`` no node is asked a second time, nothing goes down, and the server's is the only result."""
    assert {kind for kind, _ in upload_only.grid.asked} == {"train"}
    modules = sum(map(len, upload_only.modules().values()))
    assert upload_only.metrics["bytes"] == {"up": modules, "down": 0, "modules-up": modules}
    assert set(upload_only.metrics["results"]) == {"server"} and upload_only.metrics["missing"] == []


def test_the_site_of_synthesis_changes_no_module_and_no_server_model(finished, upload_only):
    """Where synthesis happens leaves module files and the server's classifier as they are, byte for byte."""
    assert upload_only.modules() == finished.modules()
    server = "classifiers/server.safetensors"
    assert upload_only.files("classifiers") == {server: finished.files("classifiers")[server]}


def test_equal_runs_are_equal_to_the_last_byte(finished, run_tiny, tmp_path):
    """Another folder, other node ids and another order of replies give the same files, ledger and results."""
    again = run_tiny(tiny(tmp_path), shuffle=77)
    everything = ("modules", "nodes", "classifiers")
    assert again.files(*everything) == finished.files(*everything)
    assert again.metrics["results"] == finished.metrics["results"] and again.metrics["bytes"] == finished.metrics["bytes"]
    ledgers = [one.directory.path.joinpath("ledger.jsonl").read_bytes() for one in (finished, again)]
    assert ledgers[0] == ledgers[1]


def test_another_seed_gives_other_modules(upload_only, other_seed):
    """No module of a run with another seed has an id of this one."""
    assert len(other_seed.modules()) == 10 and not set(other_seed.modules()) & set(upload_only.modules())


def test_edm_runs_are_equal_to_the_last_byte(run_tiny, tmp_path):
    """Diffusion modules, and the classifier trained on their samples, repeat to the last byte too."""
    settings = {"module__kind": "edm", "module__edm__channels": 8, "module__edm__steps": 3, "module__edm__evaluations": 2}
    settings |= {"num_clients": 2, "partition__classes_per_node": 5, "synthesis__site": "server", "module__edm__batch_size": 16}
    first, second = (run_tiny(tiny(tmp_path / str(i), **settings), shuffle=i) for i in range(2))
    assert len(first.modules()) == 10 and first.modules() == second.modules()
    assert first.files("classifiers") == second.files("classifiers")
    assert first.metrics["results"] == second.metrics["results"]


@pytest.mark.parametrize(
    ("consensus", "results", "exchanged"),
    [
        ("none", {"server", "client_mean"}, set()),
        ("poe", MODEL_RESULTS, {"weights-up"}),
        ("logits", {"server", "client_mean", "student"}, {"logits-up"}),
    ],
)
def test_each_consensus_has_its_results_and_its_bytes(consensus, results, exchanged, finished, run_tiny, tmp_path):
    """A consensus brings exactly its results and payloads, and what it shares with the fullest one is equal to it."""
    one = run_tiny(tiny(tmp_path, consensus=consensus))
    assert set(one.metrics["results"]) == results
    assert set(one.metrics["bytes"]) == {"up", "down", "modules-up", "modules-down"} | exchanged
    shared = results - {"student"} if consensus == "poe" else results
    assert {name: one.metrics["results"][name] for name in shared} == {name: finished.metrics["results"][name] for name in shared}
    if consensus == "poe":
        up = one.metrics["bytes"]["modules-up"] + one.metrics["bytes"]["weights-up"]
        assert one.metrics["results"]["student"]["bytes"]["up"] == up


def test_more_nodes_than_the_spec_has_are_refused(tmp_path):
    """A federation of another size than the spec's ends the run with the command that makes both equal."""
    with pytest.raises(RunError, match=r"6 SuperNodes are connected, num-clients is 5.*num-supernodes=5"):
        run(LocalGrid(app, 6), tiny(tmp_path, connect_timeout=0.3))


def test_an_output_folder_that_cannot_be_written_is_named_first(tmp_path):
    """Where nothing can be written the run ends before any node is asked, with the remedy."""
    (tmp_path / "file").write_text("in the way")
    grid = LocalGrid(app, 5)
    with pytest.raises(RunError, match="set out or FF_RUNS to a folder that can"):
        run(grid, tiny(tmp_path / "file"))
    assert grid.asked == []


def test_nodes_and_classes_without_enough_images_are_declined(run_tiny, tmp_path):
    """Nodes without images and classes with fewer than ``module.min-images`` are reported with the reason; the run goes on."""
    settings = {"num_clients": 12, "partition__kind": "dirichlet", "partition__alpha": 0.02, "synthesis__site": "server"}
    one = run_tiny(tiny(tmp_path, **settings, module__min_images=20))
    counts = one.directory.read_json("label_distribution.json")["counts"]
    empty = {(p, -1) for p, row in enumerate(counts) if not any(row)}
    few = {(p, label) for p, row in enumerate(counts) for label, count in enumerate(row) if 0 < count < 20}
    assert empty and few, "the partition of this test has both"
    assert {(d["partition"], d["label"]) for d in one.metrics["declined"]} == empty | few
    for declined in one.metrics["declined"]:
        images = (
            "the node holds no images" if declined["label"] < 0 else "images: a module needs at least 20; lower module.min-images"
        )
        assert images in declined["reason"]
    assert len(one.modules()) == sum(count >= 20 for row in counts for count in row)
    assert one.metrics["missing"] == [] and "server" in one.metrics["results"]
    assert one.again().grid.asked == []


def test_a_node_without_images_answers_like_the_others(run_tiny, tmp_path):
    """A node that holds nothing still synthesizes from all modules, trains and takes part in the consensus."""
    one = run_tiny(tiny(tmp_path, num_clients=12, partition__kind="dirichlet", partition__alpha=0.02))
    assert {declined["label"] for declined in one.metrics["declined"]} >= {-1}
    assert {p for kind, p in one.grid.asked if kind == "evaluate"} == set(range(12))
    assert set(one.metrics["results"]) == MODEL_RESULTS and one.metrics["notes"] == []


def test_the_run_directory_is_returned(upload_only):
    """``run`` returns the directory that the spec's name leads to."""
    assert RunDirectory.open(upload_only.spec).path == upload_only.directory.path
