"""What a node may send, from bytes that are no file to lies that look honest, each with the rule that refuses it."""

import dataclasses
import io
import pickle
import struct
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from tampering import LIAR, join_file, split_file
from victim import OTHER, Sent, State, Victim, broken_rule

from ff_flower.errors import FederatedFactoryError
from ff_flower.registry import Expectation, ModuleManifest, ModuleRegistry, encode_module, module_id
from ff_flower.vetting import check_cost

Judge = Callable[[Victim], list[str]]
Header = Callable[[dict], object]


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes
    ----------
    name : str
        What is done, as the table says it.
    rule : str
        The rule that refuses it; empty where none does.
    judge : callable
        Carries it out against a victim, and returns the rules of the refusals.
    refusals : int
        How many there are: more than one where honest modules cannot be told from the lie.
    """

    name: str
    rule: str
    judge: Judge
    refusals: int = 1


def sends(make: Callable[[Victim], bytes | Sequence[Sent]], **trust: object) -> Judge:
    """Return a judge: the liar sends what ``make`` returns, bytes in the place of its first module, or all its files."""

    def judge(victim: Victim) -> list[str]:
        made = make(victim)
        own, *others = victim.honest[LIAR]
        sent = [dataclasses.replace(own, data=made), *others] if isinstance(made, bytes) else list(made)
        refused, left = victim.receive(sent, **trust)
        assert left == sum(len(files) for files in victim.honest.values()) - len(refused), "refusals cost other modules"
        return [rule for _, rule in refused]

    return judge


def says(**changes: object) -> Judge:
    """Return a judge: the manifest of the liar's first module says something else."""

    def make(victim: Victim) -> bytes:
        manifest, state = victim.opened()
        return encode_module(state, manifest.model_copy(update=changes))

    return sends(make)


def writes(old: str, new: str) -> Judge:
    """Return a judge: in the manifest's text, which no honest program writes, ``old`` is replaced."""

    def edit(header: dict) -> None:
        text = header["__metadata__"]["manifest"]
        assert old in text
        header["__metadata__"]["manifest"] = text.replace(old, new)

    return edits(edit)


def edits(edit: Header) -> Judge:
    """Return a judge: the header of the liar's first file is edited, its tensors' bytes are not."""

    def make(victim: Victim) -> bytes:
        header, body = split_file(victim.own.data)
        edit(header)
        return join_file(header, body)

    return sends(make)


def weighs(change: Callable[[State], State], wire_dtype: str = "float16") -> Judge:
    """Return a judge: the tensors of the liar's first module are changed."""

    def make(victim: Victim) -> bytes:
        manifest, state = victim.opened()
        return encode_module(state | change(state), manifest.model_copy(update={"wire_dtype": wire_dtype}))

    return sends(make)


def poisons(images: Callable[[Victim], torch.Tensor]) -> Judge:
    """Return a judge: the liar fits its module honestly, to images that are not what it says."""
    return sends(lambda victim: victim.fitted(images(victim)))


def copies(change: Callable[[State], State], same_label: bool = False, **manifest_changes: object) -> Judge:
    """Return a judge: the liar sends another owner's weights, changed, as its own of its own label or of that owner's."""

    def make(victim: Victim) -> list[Sent]:
        stolen, state = victim.opened(OTHER)
        mine, _ = victim.opened()
        pose = mine.model_copy(update=manifest_changes)
        if same_label:
            pose = pose.model_copy(update={"label": stolen.label, "label_name": stolen.label_name})
        data = encode_module(state | change(state), pose)
        others = victim.honest[LIAR][1:]
        return [Sent(data, pose.label, pose.num_examples), *(others if not same_label else victim.honest[LIAR])]

    return sends_more(make) if same_label else sends(make)


def sends_more(make: Callable[[Victim], Sequence[Sent]]) -> Judge:
    """Return a judge: the liar sends files beside its own."""

    def judge(victim: Victim) -> list[str]:
        return [rule for _, rule in victim.receive(make(victim))[0]]

    return judge


def pickled(victim: Victim) -> bytes:
    """Return a pickle, as ``torch.save`` wrote it once."""
    return pickle.dumps({"weight": list(range(100))})


def zipped(victim: Victim) -> bytes:
    """Return a zip archive with a pickle in it, as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    return buffer.getvalue()


def non_finite(value: float) -> Callable[[Victim], bytes]:
    """Return what makes a well-formed file with one weight of ``value``."""

    def make(victim: Victim) -> bytes:
        manifest, state = victim.opened()
        half = {name: tensor.half() for name, tensor in state.items()}
        half["mean"][3] = value
        return save(half, metadata={"manifest": manifest.canonical_json()})

    return make


def shifted(header: dict) -> None:
    """Leave a hole of four bytes before the first tensor."""
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


def overlapping(header: dict) -> None:
    """Let the last tensor lie upon the first."""
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    size = entries[-1]["data_offsets"][1] - entries[-1]["data_offsets"][0]
    entries[-1]["data_offsets"] = [0, size]


def wrong_name(victim: Victim) -> list[Sent]:
    """Send the file with one bit changed, under the honest file's id."""
    own, *others = victim.honest[LIAR]
    return [dataclasses.replace(own, data=own.data[:-1] + bytes([own.data[-1] ^ 1]), name=module_id(own.data)), *others]


def exchanged(victim: Victim) -> list[Sent]:
    """Report each of two modules for the other's label."""
    one, other = victim.honest[LIAR]
    return [dataclasses.replace(one, data=other.data), dataclasses.replace(other, data=one.data)]


def changed_on_disk(victim: Victim) -> list[str]:
    """Change a registered file behind the server's back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{module_id(victim.own.data)}.safetensors"
        path.write_bytes(victim.honest[OTHER][0].data)
        return [refusal.rule for refusal in ModuleRegistry(Path(folder)).quarantined()]


def look_alike(name: str, spelt: str) -> Judge:
    """Return a judge: of the class ``name`` something is sent that only looks so."""
    assert name != spelt

    def judge(victim: Victim) -> list[str]:
        manifest = victim.opened()[0].model_copy(update={"label": 0, "label_name": unicodedata.normalize("NFC", spelt)})
        expected = Expectation("digits", victim.spec.seed, victim.splits.info.shape, (name,))
        return broken_rule(lambda: expected.check(manifest))

    return judge


def absurd(kind: str, shape: tuple[int, int, int], **settings: object) -> Judge:
    """Return a judge: a manifest asks for a monster where no run's settings are at hand, as in ``ff-flower inspect``."""

    def judge(victim: Victim) -> list[str]:
        changes = {"kind": kind, "spec": settings, "image_shape": shape}
        manifest = ModuleManifest(**(victim.opened()[0].model_dump() | changes))
        return broken_rule(lambda: check_cost(manifest))

    return judge


def noisy(share: float) -> Callable[[State], State]:
    """Return a change that adds to every tensor but the mixture's weights noise of ``share`` of its own deviation."""

    def change(state: State) -> State:
        random = torch.Generator().manual_seed(1)
        kept = {name: tensor for name, tensor in state.items() if name != "weights"}
        return {name: one + share * one.std() * torch.randn(one.shape, generator=random) for name, one in kept.items()}

    return change


def reordered(state: State) -> State:
    """Exchange the order of the mixture's Gaussians: the same distribution from other noise."""
    return {name: state[name].flip(0) for name in ("weights", "means", "factors")}


def mirrored(state: State) -> State:
    """Take the noise with the opposite sign: the same distribution from other noise."""
    return {"factors": -state["factors"]}


def of_class(victim: Victim, partition: int) -> torch.Tensor:
    """Return the images of the first class of a node."""
    return victim.splits.train.of_label(victim.honest[partition][0].label).images


def noise_images(victim: Victim) -> torch.Tensor:
    """Return pixels that know nothing of each other."""
    return torch.randint(0, 256, (150, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def marked(victim: Victim) -> torch.Tensor:
    """Return the right images with a white pixel in a corner: what a backdoor looks like."""
    images = of_class(victim, LIAR).clone()
    images[:, :, 0, 0] = 255
    return images


BYTES = (
    Attack("a pickle under the name .safetensors", "header-length", sends(pickled)),
    Attack("a zip archive (torch.save) under the name .safetensors", "header-length", sends(zipped)),
    Attack("no bytes", "size", sends(lambda victim: b"")),
    Attack("larger than trust.max-module-mb", "size", sends(lambda victim: bytes(2**20 + 1), max_module_mb=1)),
    Attack("cut short by one byte", "offsets", sends(lambda victim: victim.own.data[:-1])),
    Attack("a header of 2^63 bytes announced", "header-length", sends(lambda v: struct.pack("<Q", 2**63) + v.own.data[8:])),
    Attack("a header nested 100,000 deep", "header-json", sends(lambda victim: join_file('{"a":' + "[" * 100_000, b""))),
    Attack("overlapping tensors", "offsets", edits(overlapping)),
    Attack("a hole between tensors", "offsets", edits(shifted)),
    Attack("a second metadata key", "metadata", edits(lambda header: header["__metadata__"].update(second="x"))),
    Attack("a weight is NaN", "finite-weights", sends(non_finite(float("nan")))),
    Attack("a weight is infinite", "finite-weights", sends(non_finite(float("inf")))),
    Attack("one bit changed, under the honest file's id", "report", sends(wrong_name)),
    Attack("exchanged on the server's disk", "digest", changed_on_disk),
)
MANIFEST = (
    Attack("a label beyond the table", "label", says(label=10, label_name="ten")),
    Attack("another label's name", "label", says(label_name="0")),
    Attack("two modules reported for each other's label", "report", sends(exchanged), 2),
    Attack("an image shape that is not the run's", "image-shape", says(image_shape=(3, 8, 8))),
    Attack("a module of a run with another seed", "other-run", says(root_seed=1)),
    Attack("a module of another data set", "other-run", says(dataset="mnist")),
    Attack("another owner's name", "owner", says(owner=str(OTHER))),
    Attack("more images than reported", "report", says(num_examples=10_000)),
    Attack("an unknown kind", "spec", says(kind="diffusion_transformer")),
    Attack("settings that the run did not ask for", "spec", says(spec={"components": 1024})),
    Attack(
        "a network for 100 GB, no run at hand (inspect)",
        "architecture",
        absurd("edm", (3, 128, 128), size="large", channels=512, depth=8, levels=4, patch=1),
    ),
    Attack(
        "sampling in 1000 steps of a large network, no run at hand",
        "architecture",
        absurd("edm", (3, 128, 128), size="large", patch=1, evaluations=1000),
    ),
    Attack(
        "a Gaussian of 100 million covariances, no run at hand",
        "architecture",
        absurd("gaussian_mixture", (3, 128, 128), components=10_000),
    ),
    Attack("a path for an owner: ../../root", "manifest", writes(f'"owner":"{LIAR}"', '"owner":"../../root"')),
    Attack("a hidden file for an owner: .ssh", "manifest", writes(f'"owner":"{LIAR}"', '"owner":".ssh"')),
    Attack("a class name with a Cyrillic a", "label", look_alike("basophil", "b\u0430sophil")),
    Attack("a class name in full-width digits", "label", look_alike("6", "\uff16")),
    Attack("a class name in NFD, where the file must have NFC", "canonical-manifest", writes('"note":""', '"note":"u\\u0308"')),
    Attack("a bidirectional mark in a name", "manifest", writes('"note":""', '"note":"\\u202e"')),
    Attack("another spelling of the same manifest", "canonical-manifest", writes('"note":""', '"note": ""')),
)
WEIGHTS = (
    Attack("tensors of another shape than the settings say", "architecture", weighs(lambda s: {"basis": s["basis"][:, :-1]})),
    Attack("weights that overflow when sampled", "finite-samples", weighs(lambda s: {"basis": s["basis"] * 0 + 3e38}, "float32")),
    Attack("samples a hundred times too bright", "sample-range", weighs(lambda s: {"mean": s["mean"] * 0 + 200})),
    Attack("a constant image", "constant", weighs(lambda s: {"basis": s["basis"] * 0, "mean": s["mean"] * 0})),
    Attack("one image again and again", "collapsed", weighs(lambda s: {"basis": s["basis"] * 0})),
    Attack("a few images again and again", "collapsed", weighs(lambda s: {"factors": s["factors"] * 0})),
    Attack("a module fitted to noise", "noise", poisons(noise_images)),
    Attack("another owner's weights, of the same label", "duplicate", copies(lambda state: {}, same_label=True)),
    Attack("another owner's weights, under another label", "duplicate", copies(lambda state: {}), 2),
    Attack("the same, stored as float32", "duplicate", copies(lambda state: {}, wire_dtype="float32"), 2),
    Attack("the same, with 0.1 % of noise", "near-duplicate", copies(noisy(0.001)), 2),
    Attack("the same, with 1 % of noise", "near-duplicate", copies(noisy(0.01)), 2),
    Attack("the same, a little brighter", "near-duplicate", copies(lambda s: {"mean": s["mean"] + 0.05}), 2),
    Attack("the same, with 30 % of noise", "", copies(noisy(0.3)), 0),
    Attack("the same, its Gaussians in another order", "", copies(reordered), 0),
    Attack("the same, its noise mirrored", "", copies(mirrored), 0),
    Attack("1 % of noise, sold as the same label", "", copies(noisy(0.01), same_label=True), 0),
    Attack("an honest module of another class (label flipping)", "", poisons(lambda victim: of_class(victim, OTHER)), 0),
    Attack("images with a mark in a corner (a backdoor)", "", poisons(marked), 0),
)
FAMILIES = {"bytes": BYTES, "manifest": MANIFEST, "weights and samples": WEIGHTS}


def outcome(attack: Attack, victim: Victim) -> list[str]:
    """Carry out an attack and return the rules of the refusals; an error that is no refusal is raised."""
    try:
        return attack.judge(victim)
    except FederatedFactoryError as error:
        raise AssertionError(f"{attack.name}: {error!r}") from error
