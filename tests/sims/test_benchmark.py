"""Every command of the benchmark at toy sizes: what it measures, what it keeps, and how a budget of seconds is planned."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from local_grid import LocalGrid, tiny
from PIL import Image
from typer.testing import CliRunner

from clients.client_app import app as client_app
from ff_flower.config import ModuleSpec, RunSpec, TrainingSpec
from ff_flower.data import load_splits
from ff_flower.errors import ConfigError, DataError, RunError
from ff_flower.generative import KINDS, build_module
from ff_flower.registry import ModuleLimits, ModuleRegistry, decode_module
from ff_flower.seeding import generator
from sims.benchmark import curve, memorization, pipeline, quality, results, throughput
from sims.benchmark.__main__ import app
from sims.benchmark.options import HOME
from sims.benchmark.pipeline import Sampling, Workers
from sims.benchmark.results import Results, as_text, one_of, shares, whole_numbers
from sims.run import Finished
from strategies.server_app import run

SEVERAL = Results("example", "An example", ("name", "size"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return settings of two classes of 8x8 images, light above and light below, with run directories of their own."""
    folder = tmp_path_factory.mktemp("toy")
    random, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 60), ("val", 0), ("test", 20)):
        labels = np.arange(count) % 2
        above = (np.arange(8) < 4)[None, :, None] == (labels == 0)[:, None, None]
        images = np.where(above, 180, 40) + random.integers(0, 40, (count, 8, 8))
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels.astype(np.uint8)}
    np.savez(folder / "toy.npz", **arrays)
    return [f"--set=data.name=npz:{folder / 'toy.npz'}", f"--set=out={folder / 'runs'}", "--set=module.edm.evaluations=2"]


def call(*arguments):
    """Return what a command prints."""
    result = CliRunner().invoke(app, [*arguments, "--markdown"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def rows(output, column=0):
    """Return one column of the table in Markdown, without its heading."""
    lines = [re.split(r" \| ", line.strip("| ")) for line in output.splitlines() if line.startswith("| ")]
    return [line[column].strip() for line in lines[1:] if set(line[0]) != {"-"}]


def test_modules_has_a_row_per_kind_and_size(tmp_path):
    """Each kind is measured on each size's images, and the numbers that must be there are positive."""
    output = call("modules", "--quick", "--device=cpu", "--sizes=tiny", "--write", f"--out={tmp_path}")
    kept = json.loads((tmp_path / "modules.json").read_text())["rows"]
    assert rows(output, 1) == list(KINDS) == [row["kind"] for row in kept]
    assert all(row[name] > 0 for row in kept for name in ("images/s training", "images/s sampling", "parameters", "file kB"))
    trained = [isinstance(ModuleSpec().of_kind(kind), TrainingSpec) for kind in KINDS]
    assert [row["share of it %"] is not None for row in kept] == trained


@pytest.mark.parametrize("size", throughput.SHAPES)
def test_modules_are_measured_with_all_their_directions(size):
    """The images that are made up for a measurement are enough for the largest Gaussian that a size allows."""
    rank = ModuleSpec().edm.model_copy(update={"size": size}).resolved(throughput.SHAPES[size]).rank
    assert len(pipeline.random_images((1, 8, 8))) >= 2 * rank > 0


def test_operations_are_those_of_the_convolutions(monkeypatch):
    """Operations per image are those of forward and backward over all weights, for any number of images that are counted."""
    [load] = throughput.loads(["edm"], ["tiny"], batch=8, seconds=0.0, repeats=1, threads=1, device="cpu")
    images = pipeline.random_images(load.shape)
    once = throughput.operations_per_image(load, images)
    module = build_module(load.module(1), load.shape, "cpu", "edm").fit(images, 0)
    weights = sum(tensor.numel() for name, tensor in module.state().items() if ".network." in name)
    assert weights < once < 6 * weights * 64  # forward and backward are 6 operations per weight at each of 8 x 8 places
    monkeypatch.setattr(throughput, "COUNTED", 2 * throughput.COUNTED)
    assert throughput.operations_per_image(load, images) == once


def test_evaluations_has_a_row_per_sampler_and_number(toy):
    """The table is the product of the samplers, all of the kind unless some are named, and the numbers that were asked for."""

    def measured(*options):
        output = call("evaluations", "--quick", "--evaluations=1,2", "--repeats=2", *options, *toy)
        table = output[output.index("| data set") :]
        return list(zip(rows(table, 2), rows(table, 3), strict=True))

    assert measured() == [(sampler, number) for sampler in ("heun", "dpmpp-2m") for number in ("2", "1")]
    assert measured("--samplers=dpmpp-2m") == [("dpmpp-2m", "2"), ("dpmpp-2m", "1")]
    refused = CliRunner().invoke(app, ["evaluations", "--quick", "--samplers=euler", *toy])
    assert refused.exit_code == 2 and "unknown sampler 'euler'" in refused.output


def test_each_row_of_evaluations_is_kept_at_once(toy, tmp_path, monkeypatch):
    """Where the second sampling fails, the first row, that of the most evaluations, is on disk."""
    several = iter([quality.synthetic_set])

    def failing(*arguments):
        return next(several)(*arguments)

    monkeypatch.setattr(quality, "synthetic_set", failing)
    command = ["evaluations", "--quick", "--evaluations=1,2", "--repeats=1", "--write", f"--out={tmp_path}", *toy]
    assert CliRunner().invoke(app, command).exit_code != 0
    kept = json.loads((tmp_path / "evaluations.json").read_text())["rows"]
    assert [(row["sampler"], row["evaluations"]) for row in kept] == [("heun", 2)]


@pytest.mark.parametrize(("change", "said"), [({"num_clients": 10}, "several owners have modules of a class"), ({}, None)])
def test_the_modules_of_a_run_are_one_per_class(change, said, tmp_path):
    """A run's own modules are measured where every class has one owner; its settings are its own but for those that are set."""
    spec = tiny(tmp_path, partition__classes_per_node=2, synthesis__site="server", **change)
    path = run(LocalGrid(client_app, spec.num_clients), spec).path
    with Workers(0) as workers:
        if said:
            with pytest.raises(DataError, match=said):
                quality.modules_of(str(path), "", [], workers)
        else:
            made, files = quality.modules_of(str(path), "", ["classifier.steps=3"], workers)
            assert (made.classifier.steps, made.classifier.width, len(files)) == (3, spec.classifier.width, 10)


def test_modules_of_a_larger_limit_are_read(tmp_path, monkeypatch):
    """A run whose spec allows larger module files than the default keeps them, whatever is measured of it."""
    path = run(LocalGrid(client_app, 5), tiny(tmp_path, synthesis__site="server")).path
    largest = max(file.stat().st_size for file in (path / "modules").glob("*.safetensors"))
    for function in (ModuleRegistry.__init__, decode_module):
        monkeypatch.setattr(function, "__defaults__", (ModuleLimits.of_bytes(largest - 1),))
    with Workers(0) as workers:
        spec, files = quality.modules_of(str(path), "", [], workers)
        assert len(pipeline.synthetic_set(spec, files, Sampling(2, {}), workers)[0]) == 20


def test_a_partial_run_is_no_point_of_the_curve(tmp_path, monkeypatch):
    """A run that lacks a node or a module is refused by what it lacks."""
    lacking = {"results": {}, "missing": [{"partition": 3, "reason": "killed"}]}
    monkeypatch.setattr(curve, "FlowerSession", nullcontext)
    monkeypatch.setattr(curve, "execute", lambda session, spec, tell: Finished(tmp_path, lacking, "", ()))
    with pytest.raises(RunError, match="partial: node 3 is missing: killed"):
        curve.run_in_flower(RunSpec(out=str(tmp_path / "out")))


def test_pools_of_one_cost(toy):
    """Half the evaluations buy twice the samples, each of which is seen half as often."""
    output = call("pool", "--quick", "--evaluations=1,2", "--repeats=1", *toy)
    assert rows(output, 4) == ["24", "12"]
    few, many = (float(times) for times in rows(output, 5))
    assert many == pytest.approx(2 * few, rel=0.02)


def test_the_baseline_is_the_papers_sampler(toy, monkeypatch):
    """The paper's row has 99 evaluations and is once as fast as itself; the other samples as the settings say, not the files."""
    asked, made = [], quality.synthetic_set

    def spy(spec, files, sampling, workers):
        asked.append(sampling.changes)
        return made(spec, files, sampling, workers)

    monkeypatch.setattr(quality, "synthetic_set", spy)
    output = call("evaluations", "--quick", "--baseline", "--repeats=1", *toy)
    assert asked == [{"sampler": "dpmpp-2m", "evaluations": 2}, quality.PAPER]
    assert rows(output, 4) == ["2", "99"] and rows(output, 6)[1] == "1.00"


def test_full_precision_is_the_same_module_to_rounding(toy):
    """In float32 and uncompiled a module makes the same images but for rounding."""
    spec = pipeline.overlaid(RunSpec(), [setting.removeprefix("--set=") for setting in toy])
    spec = pipeline.changed(spec, {**pipeline.QUICK, "data.name": spec.data.name})
    data = pipeline.fit_file(spec, 0)
    pair = [pipeline.open_module(data, Sampling(8, {}, full), torch.device("cpu")) for full in (False, True)]
    one, other = (module.sample(8, generator(0)).int() for module in pair)
    assert int((one - other).abs().max()) <= 8


def test_the_wire_table_has_a_row_per_type(toy, tmp_path):
    """Each type of the weights is scored, the 16-bit files are half as long, and their samples are almost the same."""
    output = call("wire", "--quick", "--repeats=1", "--write", f"--out={tmp_path}", *toy)
    kept = json.loads((tmp_path / "wire.json").read_text())["rows"]
    assert rows(output, 2) == ["float32", "float16", "bfloat16"]
    assert kept[1]["largest file kB"] == kept[2]["largest file kB"] < 0.7 * kept[0]["largest file kB"]
    assert kept[0]["levels apart"] == 0 and all(row["levels apart"] < 1 for row in kept[1:])


def test_switches_are_tried_one_at_a_time(toy, tmp_path):
    """There is a row without a switch and one per switch, each changed alone; what needs other modules or nodes is refused."""
    tried = ["--switch=classifier.mixup=0.4", "--switch=classifier.steps=6", "--switch=synthesis.samples-per-class=5"]
    call("switches", "--quick", *tried, "--repeats=1", "--write", f"--out={tmp_path}", *toy)
    kept = json.loads((tmp_path / "switches.json").read_text())["rows"]
    assert [row["switch"] for row in kept] == ["none", *(switch.removeprefix("--switch=") for switch in tried)]
    assert [(row["steps"], row["samples per class"]) for row in kept] == [(4, 12), (4, 12), (6, 12), (4, 5)]
    assert all(0 <= row["validation %"] <= 100 for row in kept)
    alone = ["--nodes=9", "--switch=synthesis.own-class=1"]
    call("switches", "--quick", *alone, "--repeats=2", "--write", f"--out={tmp_path}", *toy)
    kept = json.loads((tmp_path / "switches.json").read_text())["rows"][4:]
    assert [(row["nodes"], row["own-class"], row["classifiers"]) for row in kept] == [(2, 0.5, 4), (2, 1.0, 4)]
    refused = CliRunner().invoke(app, ["switches", "--quick", "--switch=module.edm.steps=3", *toy])
    assert refused.exit_code == 2 and "others need whole runs" in refused.output


def test_validation_images_choose_and_test_images_do_not(toy, tmp_path):
    """Exchanged labels of the test images turn the test's score round, and leave that of the validation images as it is."""
    spec = pipeline.overlaid(RunSpec(), [setting.removeprefix("--set=") for setting in toy])
    spec = pipeline.changed(spec, {**pipeline.QUICK, "data.name": spec.data.name})
    arrays = dict(np.load(spec.data.name.removeprefix("npz:")))
    np.savez(tmp_path / "toy.npz", **(arrays | {"test_labels": 1 - arrays["test_labels"]}))
    other = pipeline.changed(spec, {"data.name": f"npz:{tmp_path / 'toy.npz'}"})
    made = load_splits(spec.data, spec.seed).train

    with Workers(0) as workers:
        (one,), (turned,) = (pipeline.scores(one, [made], 2, workers) for one in (spec, other))
    assert [a + b for a, b in zip(one["test"], turned["test"], strict=True)] == pytest.approx([1, 1])
    assert one["val"] == turned["val"]


def test_classifiers_are_scored_on_both_parts(toy, tmp_path):
    """A row of evaluations tells of validation and of test images, and of those that are not there nothing."""
    command = ["evaluations", "--quick", "--evaluations=1", "--samplers=heun", "--repeats=2", "--write"]
    both = {"validation %", "validation sd", "accuracy %", "sd"}
    for fraction, told in ((0.1, both), (0, {"accuracy %", "sd"})):
        out = tmp_path / str(fraction)
        call(*command, f"--out={out}", *toy, f"--set=data.val-fraction={fraction}")
        [row] = json.loads((out / "evaluations.json").read_text())["rows"]
        assert row.keys() & both == told and row["classifiers"] == 2 and row["levels apart"] == 0


def test_nodes_in_several_processes_build_one_set(toy):
    """One node, three in one process and three in two processes build the same set; else the command fails."""
    output = call("synthesis", "--quick", "--nodes=3", "--processes=2", "--repeats=1", *toy)
    assert list(zip(rows(output, 2), rows(output, 3), strict=True)) == [("1", "1"), ("3", "1"), ("3", "2")]
    assert rows(output, 6)[0] == "1.00"


def test_stacked_weights_make_the_same_images(tmp_path):
    """Sampling over stacked weights differs from sampling one after the other by rounding alone."""
    call("batched", "--quick", "--device=cpu", "--kinds=edm", "--write", f"--out={tmp_path}")
    [row] = json.loads((tmp_path / "batched.json").read_text())["rows"]
    assert row["modules"] == 2 and row["largest difference in grey levels"] < 4


def test_copies_are_nearer_and_strangers_are_not():
    """Copies of the fitted images are all nearer to them, copies of the others none, fresh draws of the same half, ties half."""
    fitted, others, fresh = torch.randint(0, 256, (3, 400, 1, 4, 4), generator=generator(0), dtype=torch.uint8)
    assert memorization.nearer(fitted, fitted, others) == 1 and memorization.nearer(others, fitted, others) == 0
    assert abs(memorization.nearer(fresh, fitted, others) - 0.5) < 0.1 and memorization.nearer(fresh, fitted, fitted) == 0.5


def test_memorization_is_told_for_each_share_held_out(toy, tmp_path):
    """There is a row for each share held out, over all classes that have twice the images; without such a class it is refused."""
    command = ["memorization", "--quick", "--holdouts=0.5,0", *toy]
    call(*command, "--write", f"--out={tmp_path}")
    kept = json.loads((tmp_path / "memorization.json").read_text())["rows"]
    assert [(row["held out"], row["classes"], row["images"]) for row in kept] == [(0.5, 2, 8), (0.0, 2, 8)]
    assert all(0 <= row["nearer to fitted %"] <= 100 for row in kept)
    refused = CliRunner().invoke(app, ["memorization", "--images=16", *toy])
    assert refused.exit_code == 2 and "has 27 at most" in refused.output


@pytest.mark.parametrize("text", ["", "a", "1", "-0.1", "nan", "0.1;0"])
def test_what_is_no_share_is_named(text):
    """Shares are numbers from 0 to below 1."""
    with pytest.raises(ConfigError, match=r"holdouts = .*must be numbers from 0 to below 1"):
        shares(text, "holdouts")


def test_a_curve_is_filled_in_point_by_point(tmp_path, monkeypatch):
    """A point that is kept is not measured again; with each point the plot is drawn."""
    ran = []

    def local(spec):
        ran.append(spec)
        return json.loads((run(LocalGrid(client_app, spec.num_clients), spec).path / "metrics.json").read_text())

    monkeypatch.setattr(curve, "run_in_flower", local)
    small = ["--set=num-clients=2", "--set=partition.classes-per-node=5", f"--set=out={tmp_path / 'runs'}"]
    command = ["curve", "--quick", "--datasets=digits", "--kinds=gaussian_mixture", *small, "--write", f"--out={tmp_path}"]
    call(*command, "--budgets=60")
    output = call(*command, "--budgets=60,300")
    assert [run.module.kind for run in ran] == ["gaussian_mixture"] * 2
    assert rows(output, 2) == ["60", "300"] and all(float(share) > 0 for share in rows(output, 4) + rows(output, 6))
    assert Image.open(tmp_path / "curve.png").size[0] > 300


RATES = curve.Rates(sample=0.02, image=1e-3, node_step=0.05, server_step=0.03, cores=2, at_once=2, fitted=1000, tested=1000)
ON_A_GPU = replace(RATES, cores=1, at_once=16)


@pytest.mark.parametrize("rates", [RATES, ON_A_GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_plan_spends_its_budget(kind, rates):
    """Where no count meets its limit, the stages' costs at the measured rates and Flower's own seconds add up to the budget."""
    for dataset in curve.SETTINGS:
        base = curve.base_spec(dataset, kind)
        spec = curve.plan(base, 900, rates)
        waves = spec.num_clients / rates.cores
        stages = {
            "fit": spec.num_clients / min(rates.at_once, spec.num_clients) * spec.module.max_seconds,
            "vetting": spec.num_clients * 2 * spec.trust.probe * rates.sample,
            "synthesis": waves * spec.synthesis.samples_per_class * rates.sample,
            "logits": waves * spec.num_clients * spec.synthesis.samples_per_class * rates.image,
            "scores": (waves + 2 * rates.server_step / rates.node_step) * rates.tested * rates.image,
            "classifiers": spec.classifier.steps * (waves * rates.node_step + rates.server_step),
            "student": spec.distillation.steps * rates.server_step,
        }
        assert sum(stages.values()) + curve.OUTSIDE == pytest.approx(900, rel=0.01)
        assert (stages["fit"] > 0) == isinstance(base.module.of_kind(), TrainingSpec)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_plan_has_limits(kind):
    """However long the budget, samples, steps and passes over the images meet a limit."""
    base = curve.base_spec("bloodmnist", kind)
    spec = curve.plan(base, 1e6, RATES)
    longer = curve.plan(base, 1e7, RATES)
    assert longer == pipeline.changed(spec, {"module.max-seconds": longer.module.max_seconds})
    assert (spec.synthesis.samples_per_class, spec.classifier.steps) == (curve.MOST, curve.STEPS)
    if isinstance(network := spec.module.of_kind(), TrainingSpec):
        assert network.steps * network.batch_size == curve.PASSES * RATES.fitted


def test_a_longer_budget_with_the_same_plan_is_not_run_again():
    """Where every stage has met its limit, the row of a shorter budget is that of a longer one too; else there is none."""
    base = curve.base_spec("digits", "gaussian_mixture")
    full, half = (curve.plan(base, budget, RATES) for budget in (1e5, 900))
    metrics = {"results": {"server": {"bytes": {"up": 100}, "accuracy": 0.5, "auroc": 0.75}}}
    kept = curve.RESULTS.joined([curve.measure_point(full, 1e5, lambda spec: metrics)])
    assert curve.measured_alike(kept, curve.plan(base, 1e6, RATES), 1e6) == kept.rows[0] | {"budget s": 1_000_000}
    assert curve.measured_alike(kept, half, 900) is None


def test_rates_are_positive():
    """A sample and a step of the classifier cost time, at a node and at the server, and torch's threads stay as they were."""
    threads = torch.get_num_threads()
    rates = curve.measure_rates(pipeline.changed(curve.base_spec("digits", "gaussian_mixture"), pipeline.QUICK), repeats=1)
    assert rates.sample > 0 < rates.image and 0 < rates.node_step / rates.cores <= rates.server_step <= rates.node_step
    assert torch.get_num_threads() == threads


def test_fitted_modules_are_kept(toy):
    """Modules that were fitted with the same settings are read, not fitted again."""
    spec = pipeline.overlaid(RunSpec(), [setting.removeprefix("--set=") for setting in toy])
    spec = pipeline.changed(spec, {"module.kind": "gaussian_mixture", "module.gaussian-mixture.components": 4})

    class Idle(Workers):
        def map(self, function, tasks):
            assert list(tasks) == []
            return []

    first = pipeline.fitted_files(spec, Workers(0))
    assert pipeline.fitted_files(spec, Idle(0)) == first
    assert [decode_module(data)[0].label for data in first] == [0, 1]


def test_rows_are_joined_by_what_they_measure(tmp_path):
    """A row measured again takes the old one's place, all others stay, and reading returns what was written."""
    first = SEVERAL.joined([{"name": "a", "size": 1, "s": 2.0}, {"name": "b", "size": 1, "s": 3.0}])
    first.keep(tmp_path)
    second = SEVERAL.joined([{"name": "a", "size": 1, "s": 1.0}, {"name": "a", "size": 2, "s": None}]).read(tmp_path)
    assert [(row["name"], row["size"], row["s"]) for row in second.rows] == [("a", 1, 1.0), ("b", 1, 3.0), ("a", 2, None)]
    assert second.find(name="a", size=2) == second.rows[2] and second.find(name="c") is None
    assert second.table().header == ("name", "size", "s") and second.table().rows[2] == ("a", "2", "-")


def test_processes_that_measure_at_once_keep_each_others_rows(tmp_path):
    """Both began with what was there before the other's row: in the end all rows are there."""
    one, other = SEVERAL.read(tmp_path), SEVERAL.read(tmp_path)
    one.joined([{"name": "a", "size": 1}]).keep(tmp_path)
    assert [row["name"] for row in other.joined([{"name": "b", "size": 1}]).keep(tmp_path).rows] == ["a", "b"]
    assert [row["name"] for row in SEVERAL.read(tmp_path).rows] == ["a", "b"]


def test_each_row_says_where_it_was_measured(tmp_path, monkeypatch):
    """A row keeps its machine when others of another machine join it; a machine of which no row is left is forgotten."""
    machines = []
    for number, machine in enumerate(["first", "second", "second"]):
        monkeypatch.setattr(results, "describe_environment", lambda machine=machine: {"platform": machine})
        SEVERAL.joined([{"name": "a", "size": number % 2}]).keep(tmp_path)
        kept = json.loads((tmp_path / "example.json").read_text())
        machines.append([kept["environments"][row["environment"]]["platform"] for row in kept["rows"]])
    assert machines == [["first"], ["first", "second"], ["second", "second"]] and len(kept["environments"]) == 1


def test_every_kept_result_can_be_read():
    """What lies in sims/results are rows, and each says where it was measured."""
    paths = sorted(HOME.glob("*.json"))
    assert paths and all(Results(path.stem, "", ("environment",)).read(HOME).rows for path in paths)


def test_toy_rows_do_not_take_the_place_of_measured_ones():
    """--quick with --write needs a folder of its own."""
    for command in ("modules", "evaluations", "pool", "wire", "switches", "synthesis", "batched", "memorization", "curve"):
        result = CliRunner().invoke(app, [command, "--quick", "--write"])
        assert result.exit_code == 2 and "add --out" in result.output, command


@pytest.mark.parametrize("text", ["1m", "60,", "0", "-1", "1.5"])
def test_what_is_no_whole_number_is_named(text):
    """Budgets, nodes and evaluations are whole numbers from 1."""
    with pytest.raises(ConfigError, match=r"budgets = .*must be whole numbers from 1"):
        whole_numbers(text, "budgets")


def test_a_damaged_file_of_results_is_refused(tmp_path):
    """A file that holds no rows is named, with the remedy."""
    (tmp_path / "example.json").write_text("[]")
    with pytest.raises(DataError, match=r"example\.json.*remove it"):
        SEVERAL.read(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), ("edm", "edm"), (12345, "12,345"), (1234.5, "1,234"), (12.345, "12.35"), (0.01234, "0.0123")]
)
def test_cells(value, text):
    """Whole numbers have separators, small ones three significant digits, others two decimals."""
    assert as_text(value) == text


def test_an_unknown_name_is_answered_by_what_exists():
    """A kind that does not exist is refused with the kinds that do, and by the command with exit code 2."""
    with pytest.raises(ConfigError, match="gaussian_mixture"):
        one_of("gan", list(KINDS), "kind")
    refused = CliRunner().invoke(app, ["modules", "--kinds=gan"])
    assert refused.exit_code == 2 and "vae" in refused.output


def test_a_kind_without_evaluations_is_refused(toy):
    """The sampler's table is refused for a mixture, which has no sampler to choose."""
    refused = CliRunner().invoke(app, ["evaluations", "--quick", "--set=module.kind=gaussian_mixture", *toy])
    assert refused.exit_code == 2 and "heun" not in refused.output and "edm, flow" in refused.output


def test_a_run_without_modules_is_refused(tmp_path):
    """A folder that is no run directory is answered by its name."""
    refused = CliRunner().invoke(app, ["evaluations", f"--run={tmp_path}"])
    assert refused.exit_code == 2 and "spec.json" in refused.output
