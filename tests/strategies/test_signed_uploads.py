"""Signed modules in a whole run: sent, required, kept, broadcast, and checked again at every node."""

import pytest
from flwr.app import ConfigRecord
from local_grid import LocalGrid, tiny
from tampering import LIAR, at

from clients.client_app import app
from clients.signing import signing_key
from ff_flower.errors import ConfigError, RunError
from ff_flower.registry import write_key_pair
from ff_flower.run_directory import cache_root
from strategies.server_app import run

NODES, MODULES = 5, 10


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return the folders of the owners' private and public keys."""
    private, public = tmp_path_factory.mktemp("private"), tmp_path_factory.mktemp("public")
    for owner in range(NODES):
        _, made = write_key_pair(str(owner), private)
        made.rename(public / made.name)
    return private, public


@pytest.fixture
def required(tmp_path, keys):
    """Return the smallest run that requires signatures."""
    return tiny(tmp_path, trust__require_signature=True, trust__public_keys=str(keys[1]))


@pytest.fixture
def upload(required):
    """Return the same run, ending with the upload of the modules."""
    return required.model_copy(update={"synthesis": required.synthesis.model_copy(update={"site": "server"})})


def signers(keys, **changes):
    """Return the nodes' configurations, each with its own key, changed for the liar."""
    configs = {owner: {"signing-key": str(keys[0] / f"{owner}.key")} for owner in range(NODES)}
    configs[LIAR] |= {name.replace("_", "-"): str(value) for name, value in changes.items()}
    return configs


def test_signed_and_unsigned_runs_are_equal_in_bytes(required, keys, run_tiny, tmp_path):
    """Signing changes no module, no answer and no classifier; a signature of 64 bytes lies beside each module."""
    signed = run_tiny(required, node_config=signers(keys))
    plain = run_tiny(tiny(tmp_path / "plain"))
    assert signed.files("modules", "nodes", "classifiers") == plain.files("modules", "nodes", "classifiers")
    modules = signed.directory.path / "modules"
    signatures = {path.stem: path.stat().st_size for path in modules.glob("*.sig")}
    assert signatures == {path.stem: 64 for path in modules.glob("*.safetensors")} and len(signatures) == MODULES
    assert signed.metrics["bytes"]["signatures-up"] == 64 * MODULES
    assert signed.metrics["bytes"]["signatures-down"] == 64 * MODULES * NODES
    assert not list((plain.directory.path / "modules").glob("*.sig"))


def unsigned(reply):
    """Let the signatures get lost."""
    del reply.content["signatures"]
    return reply


def forged(reply):
    """Put other bytes in the place of the signatures."""
    reply.content["signatures"] = ConfigRecord({name: bytes(64) for name in reply.content["signatures"]})
    return reply


@pytest.mark.parametrize(("rule", "change"), [("signature-missing", unsigned), ("signature", forged)])
def test_missing_and_wrong_signatures_go_to_quarantine(upload, keys, run_tiny, rule, change):
    """The run goes on with the signed modules, and names the refused one and the rule."""
    finished = run_tiny(upload, tamper=at("train", change), node_config=signers(keys))
    assert {(one["partition"], one["rule"]) for one in finished.metrics["quarantined"]} == {(LIAR, rule)}
    assert len(finished.modules()) == MODULES - 2


def test_a_node_keeps_its_fits_while_the_server_lacks_one(required, keys, run_tiny, caplog):
    """A node whose signatures got lost sends its fits again without fitting, and deletes them once the server has them."""
    fits, own = cache_root(required) / "fits", f"{LIAR}+"
    first = run_tiny(required, tamper=at("train", unsigned), node_config=signers(keys))
    kept = sorted(path.name for path in fits.iterdir())
    assert len(kept) == 2 and all(name.startswith(own) for name in kept)
    assert f"fit-{LIAR}" not in first.directory.receipts()
    with caplog.at_level("INFO", "flwr"):
        again = run_tiny(required, node_config=signers(keys))
    assert again.grid.fitted == [LIAR] and caplog.text.count("is fitted already") == 2
    assert again.metrics["quarantined"] == [] and list(fits.iterdir()) == []


def test_a_foreign_signature_goes_to_quarantine(upload, keys, run_tiny):
    """A node that signs with another owner's key vouches for nothing."""
    finished = run_tiny(upload, node_config=signers(keys, signing_key=keys[0] / "0.key"))
    assert {(one["partition"], one["rule"]) for one in finished.metrics["quarantined"]} == {(LIAR, "signature-owner")}


def test_a_signature_of_no_file_refuses_the_reply(upload, keys, run_tiny):
    """A reply with a signature for a file that it does not bring is refused whole."""

    def stray(reply):
        reply.content["signatures"] = ConfigRecord({"0" * 64: bytes(64)})
        return reply

    finished = run_tiny(upload, tamper=at("train", stray), node_config=signers(keys))
    assert [one["partition"] for one in finished.metrics["missing"]] == [LIAR]
    assert "one of the 2 files" in finished.metrics["missing"][0]["reason"]


def test_a_node_checks_with_its_own_keys(required, keys, run_tiny, tmp_path):
    """A node whose folder of keys lacks an owner refuses that owner's module and says so; the run goes on without its answer."""
    own = tmp_path / "own"
    own.mkdir()
    for owner in set(range(NODES)) - {LIAR}:
        (own / f"{owner}.pub").write_bytes((keys[1] / f"{owner}.pub").read_bytes())
    finished = run_tiny(required, node_config=signers(keys, public_keys=own))
    (missing,) = finished.metrics["missing"]
    assert missing["partition"] == LIAR and "signature-owner: no public key of '3'" in missing["reason"]


def test_resuming_sets_aside_what_is_no_longer_signed(upload, keys, run_tiny):
    """A kept module whose signature was lost is asked for again, and the run ends with the same bytes."""
    first = run_tiny(upload, node_config=signers(keys))
    before = first.files("modules")
    signature = next((first.directory.path / "modules").glob("*.sig"))
    signature.unlink()
    again = LocalGrid(app, NODES, node_config=signers(keys))
    run(again, upload)
    assert len(again.fitted) == 1 and signature.exists()
    assert first.files("modules") == before


def test_keys_that_cannot_be_read(required, tmp_path, run_tiny):
    """A run whose folder of keys is not there ends before a node is asked; a node whose key is not there says so."""
    with pytest.raises(ConfigError, match="cannot be read"):
        run_tiny(required.model_copy(update={"trust": required.trust.model_copy(update={"public_keys": str(tmp_path / "no")})}))
    with pytest.raises(ConfigError, match="must be a path in quotes"):
        signing_key({"signing-key": 5})
    with pytest.raises(RunError, match="is no file"):
        run_tiny(required, node_config={node: {"signing-key": str(tmp_path / "no.key")} for node in range(NODES)})
