"""The ClientApp: unpack a message, call plain PyTorch, pack the reply."""

import logging
from collections.abc import Callable
from functools import wraps

import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from ff_flower.accelerator import prepare
from ff_flower.errors import FederatedFactoryError
from ff_flower.messages import (
    Request,
    answer_reply,
    fit_reply,
    forgotten_reply,
    introduction_reply,
    read_files,
    read_forget,
    read_modules,
    read_request,
    read_signatures,
    shared_store,
    tally_reply,
    told,
)
from ff_flower.reports import Forgotten
from ff_flower.run_directory import cache_root, drop_finished_fits
from ff_flower.unlearning import drop_copies

from .disclosure import reason_of
from .finished_fits import drop_received
from .local_sgd import local_update
from .module_factory import fit_modules
from .node_classifier import answer, fit_local
from .own_data import introduce
from .resident import drop_resident_sets
from .scoring import tally
from .signing import sign_files, signature_policy, signing_key
from .site import Site, find_partition, open_site, owner_of

logger = logging.getLogger("flwr")
app = ClientApp()

CLIENT_RAISED = 2
FAILURES = (
    FederatedFactoryError,
    ArithmeticError,
    AssertionError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
Handler = Callable[[Message, Context], RecordDict]


def replying(handler: Handler) -> Callable[[Message, Context], Message]:
    """Turn what ``handler`` returns into a reply, and what it raises into an error reply of one sentence.

    Flower shows an exception as the traceback of the whole actor, and a handler that returns nothing stalls the run.
    """

    @wraps(handler)
    def reply(message: Message, context: Context) -> Message:
        try:
            return Message(handler(message, context), reply_to=message)
        except FAILURES as error:
            return Message(Error(code=CLIENT_RAISED, reason=reason_of(error, context.node_config)), reply_to=message)

    return reply


def _begin(message: Message, context: Context) -> tuple[Request, Site, torch.device]:
    """Return what is asked, the node's images, and where to work."""
    request = read_request(message.content)
    device = prepare(request.spec, request.spec.threads)
    return request, open_site(request.spec, context.node_config, request.federation), device


@app.query("introduce")
@replying
def query_introduce(message: Message, context: Context) -> RecordDict:
    """Tell who the site is and what classes it holds, before a run with nodes that bring their own images."""
    return introduction_reply(introduce(read_request(message.content).spec, context.node_config))


@app.train()
@replying
def train(message: Message, context: Context) -> RecordDict:
    """Fit the node's modules; a node that has nothing left to do says only who it is."""
    request = read_request(message.content)
    device = prepare(request.spec, request.spec.threads)
    partition = find_partition(request.spec, context.node_config, request.federation)
    if partition not in request.partitions:
        drop_finished_fits(request.spec, owner_of(partition, request.federation))
        return RecordDict(told(partition))
    key = signing_key(context.node_config)
    report, files = fit_modules(request.spec, open_site(request.spec, context.node_config, request.federation), device)
    return fit_reply(report, files, sign_files(key, files), shared_store(request.spec))


@app.train("average")
@replying
def train_average(message: Message, context: Context) -> RecordDict:
    """Train the global classifier on the node's images for FedAvg or FedProx."""
    request, site, device = _begin(message, context)
    weights = message.content.array_records["arrays"].to_torch_state_dict()
    updated = local_update(request.spec, site, weights, request.server_round, device)
    return RecordDict({"arrays": ArrayRecord(updated), **told(site.partition, len(site.own))})


@app.evaluate()
@replying
def evaluate(message: Message, context: Context) -> RecordDict:
    """Synthesize from all modules, fit a classifier, and answer with what the consensus needs."""
    request, site, device = _begin(message, context)
    files = read_modules(message.content, shared_store(request.spec), request.spec.trust.max_module_bytes)
    drop_received(request.spec, site.owner, files.keys())
    signatures, policy = read_signatures(message.content, files), signature_policy(request.spec, context.node_config)
    account, logits, weights = answer(request.spec, site, files, device, signatures, policy)
    return answer_reply(account, site.told(len(site.own)), logits, weights)


@app.query("forget")
@replying
def forget(message: Message, context: Context) -> RecordDict:
    """Drop every copy of forgotten modules, and say what was dropped."""
    request = read_request(message.content)
    drop_resident_sets()
    dropped = drop_copies(cache_root(request.spec), request.spec.exclusion, read_forget(message.content))
    return forgotten_reply(Forgotten(find_partition(request.spec, context.node_config, request.federation), *dropped))


@app.evaluate("local")
@replying
def evaluate_local(message: Message, context: Context) -> RecordDict:
    """Fit a classifier on the node's own images alone; a node without any says only who it is."""
    request, site, device = _begin(message, context)
    if not len(site.own):
        return RecordDict(told(site.partition, 0))
    return answer_reply(fit_local(request.spec, site, device), len(site.own), None, None)


@app.evaluate("score")
@replying
def evaluate_score(message: Message, context: Context) -> RecordDict:
    """Score the server's classifiers on the site's held-out images, and answer with counts alone."""
    request, site, device = _begin(message, context)
    return tally_reply(tally(request.spec, site, read_files(message.content, "classifiers"), device))
