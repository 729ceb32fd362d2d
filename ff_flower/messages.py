"""What crosses the wire: every record and key name, once.

======================  =============  ======================================================================
record                  kind           content
======================  =============  ======================================================================
``spec``                ConfigRecord   the run's flat spec, server to node
``request``             ConfigRecord   ``source-digest``, ``partitions`` still wanted, ``server-round``
``federation``          ConfigRecord   ``json``: the `Federation` of sites with images of their own, server to node
``modules``             ArrayRecord    module files by module_id, one uint8 Array each, both ways
``references``          ConfigRecord   ``modules``: ids, in the place of the files where nodes and server share a store
``signatures``          ConfigRecord   owners' signatures by module_id, 64 bytes each, both ways; absent where there are none
``arrays``              ArrayRecord    classifier weights of the averaging methods, Flower's own name
``report``              ConfigRecord   ``json``: a `FitReport`, an `Answer`, an `Introduction` or a `Tally`, node to server
``forget``              ConfigRecord   ``modules``: ids of forgotten modules, server to node; the report then is a `Forgotten`
``classifiers``         ArrayRecord    safetensors files of classifiers that sites score, server to node
``logits``              ArrayRecord    one safetensors file with float16 logits on the synthetic set
``weights``             ArrayRecord    one safetensors file with a classifier's weights
``metrics``             MetricRecord   ``num-examples``, ``partition-id``
======================  =============  ======================================================================

Files travel as they are, in one Array whose data are the file's bytes, so that the bytes that were verified are the bytes
that are kept. Nothing here unpickles.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from .classifiers import weights_file
from .config import RunSpec, from_run_config
from .environment import source_digest
from .errors import RunError, VerificationError
from .federation import Federation, Introduction, Tally
from .module_store import REMEDY, ModuleStore, StoredFiles, is_module_id
from .reports import Answer, FitReport, Forgotten
from .run_directory import cache_root

logger = logging.getLogger("flwr")

FILE_TYPE = "safetensors"
MAX_FILE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Request:
    """What the server asks of a node.

    Attributes
    ----------
    spec : RunSpec
        The run.
    partitions : frozenset of int
        Partitions of which something is still missing; a node of another one answers at once.
    server_round : int
        Flower's round.
    federation : Federation or None
        Label table and partitions, where nodes bring their own images and have introduced themselves.
    """

    spec: RunSpec
    partitions: frozenset[int]
    server_round: int
    federation: Federation | None = None


def request_records(
    spec: RunSpec, partitions: Iterable[int], server_round: int = 1, federation: Federation | None = None
) -> RecordDict:
    """Return the records that ask nodes to work on ``spec``."""
    wanted = ",".join(str(partition) for partition in sorted(partitions))
    request = ConfigRecord({"source-digest": source_digest(), "partitions": wanted, "server-round": server_round})
    content = RecordDict({"spec": ConfigRecord({**spec.for_nodes().flat()}), "request": request})
    if federation is not None:
        content["federation"] = ConfigRecord({"json": federation.to_json()})
    return content


def read_request(content: RecordDict) -> Request:
    """Read a request, and refuse to work for a server that runs other code.

    Raises
    ------
    RunError
        When the server's code differs from this node's, or the records of a request are not there.
    """
    request = content.config_records.get("request", ConfigRecord())
    if "spec" not in content.config_records or not {"source-digest", "partitions", "server-round"} <= set(request):
        raise RunError(
            f"a message with records {sorted(content)}: a request has 'spec' and 'request' with source-digest, partitions and "
            "server-round; send what request_records returns"
        )
    if request["source-digest"] != source_digest():
        raise RunError(
            "the server runs other code than this node: Flower's simulated clients import from the directory in which the "
            "SuperLink was started; stop it and start it from the checkout that you run"
        )
    spec = from_run_config(dict(content.config_records["spec"]))  # type: ignore[arg-type]
    partitions = frozenset(int(part) for part in str(request["partitions"]).split(",") if part)
    table = content.config_records.get("federation", ConfigRecord()).get("json")
    federation = None if table is None else Federation.from_json(str(table))
    return Request(spec, partitions, int(str(request["server-round"])), federation)


class FileBytes(bytes):
    """A file's bytes, which a simulation hands from process to process through shared memory without copying them first.

    Ray serializes every message by itself, but takes an array's buffer as it is: whatever the number of nodes, the sender holds
    the files once. What arrives is plain ``bytes``.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., bytes], tuple[np.ndarray]]:
        return np.ndarray.tobytes, (np.frombuffer(self, dtype=np.uint8),)


def file_record(files: Mapping[str, bytes]) -> ArrayRecord:
    """Return files by name as an ArrayRecord."""
    return ArrayRecord(
        {name: Array(dtype="uint8", shape=(len(data),), stype=FILE_TYPE, data=FileBytes(data)) for name, data in files.items()}
    )


def read_files(content: RecordDict, record: str, max_bytes: int = MAX_FILE_BYTES) -> dict[str, bytes]:
    """Return the files of a record, by name; none where the record is absent.

    Raises
    ------
    VerificationError
        When an array is not a file, or larger than ``max_bytes``.
    """
    files = {}
    for name, array in content.array_records.get(record, ArrayRecord()).items():
        if array.stype != FILE_TYPE:
            raise VerificationError("file-type", f"array {name!r:.80} is of type {array.stype!r:.80}, not {FILE_TYPE!r}")
        if len(array.data) > max_bytes:
            raise VerificationError("size", f"file {name!r:.80} has {len(array.data)} bytes, at most {max_bytes} are read")
        files[name] = array.data
    return files


def module_store(spec: RunSpec) -> ModuleStore:
    """Return the folder of module files that ``transport = "reference"`` shares between the runs of a machine."""
    return ModuleStore(cache_root(spec) / "modules")


def shared_store(spec: RunSpec) -> ModuleStore | None:
    """Return the store where nodes and server of a run leave module files; None where these travel in the messages."""
    return module_store(spec) if spec.transport == "reference" else None


def module_records(files: Mapping[str, bytes], store: ModuleStore | None) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return the record that brings module files by module_id: themselves, or their ids once the ``store`` holds them.

    Where somebody else's file or folder keeps one from its place in the store, who needs it is missing.
    """
    if store is None:
        return {"modules": file_record(files)}
    for name in files:
        if store.holds(name, MAX_FILE_BYTES):
            continue
        data = files[name]
        try:
            store.put(data)
        except VerificationError as error:
            logger.warning("%s", error)
    return {"references": ConfigRecord({"modules": ",".join(files)})}


def read_modules(content: RecordDict, store: ModuleStore | None, max_bytes: int) -> Mapping[str, bytes]:
    """Return the broadcast module files by the names they came under; those of a ``store`` are read, and refused, when used.

    Raises
    ------
    VerificationError
        Of `read_files`; of `ModuleStore.get` when a file is used.
    """
    if store is not None:
        return _referenced(content, store, max_bytes)
    return read_files(content, "modules", max_bytes)


def count_modules(content: RecordDict) -> int:
    """Return the bytes on the wire by which a message brings module files: theirs, or those of their ids."""
    return count_bytes(content, "modules") + len(str(content.config_records.get("references", ConfigRecord()).get("modules", "")))


def signature_record(signatures: Mapping[str, bytes]) -> dict[str, ConfigRecord]:
    """Return the record of signatures by module_id; none where there are no signatures."""
    return {"signatures": ConfigRecord({**signatures})} if signatures else {}


def read_signatures(content: RecordDict, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the signatures that came beside module ``files``, by module_id; not verified yet.

    Raises
    ------
    VerificationError
        Rule ``signature``: one belongs to no file that came, or is not made of bytes.
    """
    signatures: dict[str, bytes] = {}
    for name, value in content.config_records.get("signatures", ConfigRecord()).items():
        if name not in files or not isinstance(value, bytes):
            raise VerificationError(
                "signature", f"{name[:80]!r}: bytes that sign one of the {len(files)} files sent are expected"
            )
        signatures[name] = value
    return signatures


def count_bytes(content: RecordDict, record: str) -> int:
    """Return the payload of a record in bytes, without Flower's framing."""
    return sum(len(array.data) for array in content.array_records.get(record, ArrayRecord()).values())


def told(partition: int, num_examples: int = 0, report: str = "") -> dict[str, ArrayRecord | MetricRecord | ConfigRecord]:
    """Return the records by which every reply says who it is from, and on how many images it rests."""
    metrics = MetricRecord({"num-examples": num_examples, "partition-id": partition})
    return {"metrics": metrics, "report": ConfigRecord({"json": report})}


def fit_reply(
    report: FitReport,
    files: Mapping[str, bytes],
    signatures: Mapping[str, bytes] | None = None,
    store: ModuleStore | None = None,
) -> RecordDict:
    """Return a node's module files with its report, and its signatures by module_id where it signs."""
    brought = {**module_records(files, store), **signature_record(signatures or {})}
    return RecordDict({**brought, **told(report.partition, report.num_examples, report.to_json())})


def read_fit_reply(
    content: RecordDict, store: ModuleStore | None = None, max_bytes: int = MAX_FILE_BYTES
) -> tuple[FitReport, Mapping[str, bytes]]:
    """Return report and module files of a node; what they hold is not verified yet.

    Parameters
    ----------
    content : RecordDict
        The node's reply.
    store : ModuleStore, optional
        Where files lie that the reply only names. Each is read, and refused, when it is used: compare the names with the report
        before.
    max_bytes : int
        Size beyond which a file of the store is not read.

    Raises
    ------
    VerificationError
        Of `FitReport.from_json` and `read_files`; rule ``references``; of `ModuleStore.get` when a file is used.
    """
    report = FitReport.from_json(_report(content))
    return report, read_files(content, "modules") if store is None else _referenced(content, store, max_bytes)


def answer_reply(answer: Answer, num_examples: int, logits: Tensor | None, weights: Mapping[str, Tensor] | None) -> RecordDict:
    """Return a node's answer, with its logits (n, K) at half precision and its classifier where the run asks for them."""
    content = RecordDict(told(answer.partition, num_examples, answer.to_json()))
    if logits is not None:
        content["logits"] = file_record({"logits": weights_file({"logits": logits.half()})})
    if weights is not None:
        content["weights"] = file_record({"weights": weights_file(dict(weights))})
    return content


def read_answer(content: RecordDict) -> tuple[Answer, dict[str, bytes]]:
    """Return an answer and its files, ``logits`` and ``weights``, as far as it brings them; see `read_tensors`."""
    return Answer.from_json(_report(content)), read_files(content, "logits") | read_files(content, "weights")


def introduction_reply(introduction: Introduction) -> RecordDict:
    """Return what a site tells of itself."""
    return RecordDict({"report": ConfigRecord({"json": introduction.to_json()})})


def read_introduction(content: RecordDict) -> Introduction:
    """Return what a site told of itself; `VerificationError` where that is not an introduction."""
    return Introduction.from_json(_report(content))


def tally_reply(tally: Tally) -> RecordDict:
    """Return a site's counts."""
    return RecordDict(told(tally.partition, report=tally.to_json()))


def read_tally(content: RecordDict) -> Tally:
    """Return a site's counts; `VerificationError` where there are none."""
    return Tally.from_json(_report(content))


def forget_records(spec: RunSpec, module_ids: Iterable[str], federation: Federation | None = None) -> RecordDict:
    """Return the records that tell nodes to drop every copy of these modules, and of whom ``spec`` excludes."""
    content = request_records(spec, (), federation=federation)
    content["forget"] = ConfigRecord({"modules": ",".join(sorted(module_ids))})
    return content


def read_forget(content: RecordDict) -> tuple[str, ...]:
    """Return the ids of the modules that are to be forgotten; RunError where the record is not there."""
    text = content.config_records.get("forget", ConfigRecord()).get("modules")
    if not isinstance(text, str):
        raise RunError(f"a message with records {sorted(content)}: must have 'forget'; send what forget_records returns")
    ids = tuple(part for part in text.split(",") if part)
    if wrong := [part for part in ids if not is_module_id(part)]:
        raise RunError(f"{wrong[0][:80]!r} is no module id: 64 hexadecimal digits; send what forget_records returns")
    return ids


def forgotten_reply(account: Forgotten) -> RecordDict:
    """Return a node's account of what it dropped."""
    return RecordDict(told(account.partition, 0, account.to_json()))


def read_forgotten(content: RecordDict) -> Forgotten:
    """Return a node's account of what it dropped (VerificationError where it is none)."""
    return Forgotten.from_json(_report(content))


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; `VerificationError` (rule ``safetensors``) where it is none, or holds none."""
    try:
        tensors = dict(load_tensors(data))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, AssertionError) as error:
        raise VerificationError("safetensors", f"{error!s:.200}") from error
    if not tensors:
        raise VerificationError("safetensors", "the file holds no tensors; send what weights_file writes")
    return tensors


def _referenced(content: RecordDict, store: ModuleStore, max_bytes: int) -> StoredFiles:
    names = content.config_records.get("references", ConfigRecord()).get("modules")
    if not isinstance(names, str):
        raise VerificationError("references", f"the message has no record 'references' with a text 'modules'; {REMEDY}")
    return StoredFiles(store, [name for name in names.split(",") if name], max_bytes)


def _report(content: RecordDict) -> str:
    text = content.config_records.get("report", ConfigRecord()).get("json")
    if not isinstance(text, str):
        raise VerificationError("report", "the reply has no record 'report' with a text 'json'")
    return text
