"""Codec, names, topics, contract, bundle and policy: what they accept and how they refuse."""

import math

import msgspec
import pytest

from edgekit.contracts import bundle, codec, contract, digest, ids, messages, topics
from edgekit.contracts.errors import (
    BadInputError,
    EdgekitError,
    ResourceError,
    translate_os_errors,
)
from edgekit.contracts.shadow import Shadow


def test_canonical_bytes_do_not_depend_on_insertion_order():
    assert codec.encode({"b": 1, "a": [2.5]}) == codec.encode({"a": [2.5], "b": 1})


def test_decode_names_document_and_field():
    with pytest.raises(BadInputError, match=r"ack from d1: .*boot"):
        codec.decode(messages.Ack, b'{"epoch":1,"boot":"x"}', what="ack from d1")


def test_decode_refuses_oversized_input_unread():
    with pytest.raises(BadInputError, match="more than the 10 allowed"):
        codec.decode(dict, b"{" + b" " * 20, what="big", bytes_max=10)


def test_envelope_keeps_unknown_fields_byte_for_byte():
    payload = b'{"gen":3,"from_the_future":{"x":[1,2]},"schema":1}'
    envelope = codec.open_envelope(b'{"payload":' + payload + b',"sig":null}', what="desired")
    assert bytes(envelope.payload) == payload
    assert codec.decode(messages.Desired, envelope.payload, what="desired").gen == 3
    assert payload in codec.encode(envelope)


def test_unmeasured_figure_reads_back_as_none():
    raw = codec.encode({"metric": "m", "outcome": "fail", "reason": "", "estimate": math.nan})
    assert b'"estimate":null' in raw


@pytest.mark.parametrize("name", ["", "a/b", "a+b", "#", "..", "a..b", "A", "-a", "a" * 65, "a\n"])
def test_names_that_could_break_topics_or_paths_are_refused(name):
    with pytest.raises(BadInputError):
        ids.check_name(name, "device")


def test_topic_round_trip_and_shard_is_first_digest_byte():
    address = topics.Address("default", ids.shard_of("meter-01"), "meter-01")
    assert topics.parse(address.topic(topics.TELEMETRY_LIVE)) == (address, "tel/live")
    assert 0 <= ids.shard_of("x") < ids.SHARDS
    assert ids.shard_of("abc") == 0xBA  # sha256("abc") = ba78...


@pytest.mark.parametrize(
    "topic",
    ["ek/2/t/1/d/ack", "ek/1/t/256/d/ack", "ek/1/t/x/d/ack", "ek/1/t/1/d/nope", "ek/1/t/1/+/ack"],
)
def test_foreign_topics_are_refused(topic):
    with pytest.raises(BadInputError):
        topics.parse(topic)


@pytest.mark.parametrize("text", ["sha256:xyz", "md5:" + "0" * 64, "sha256:../../etc/passwd", ""])
def test_digests_that_are_not_digests_never_become_paths(text):
    with pytest.raises(BadInputError):
        digest.hex_of(text)


def _contract(**changes):
    base = contract.Contract(
        inputs=(contract.InputSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(contract.OutputSpec(name="y", dtype="float32", shape=("batch", 2)),),
        quality=contract.QualityBudget(metric="top1", drop_max=0.02),
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quality": contract.QualityBudget(metric="top1", drop_max=math.nan)}, "drop_max"),
        ({"quality": contract.QualityBudget(metric="top1", drop_max=0.0)}, "drop_max"),
        (
            {"quality": contract.QualityBudget(metric="top1", drop_max=0.1, confidence=1.0)},
            "confidence",
        ),
        ({"inputs": ()}, "inputs"),
        (
            {"inputs": (contract.InputSpec(name="x", dtype="f", shape=(1,), range=(2.0, 1.0)),)},
            "range",
        ),
        ({"budgets": {"rpi5": contract.Budget(size_bytes_max=-1)}}, "size_bytes_max"),
        ({"schema": 9}, "schema"),
    ],
)
def test_contract_refuses_what_no_reader_could_obey(changes, field):
    with pytest.raises(BadInputError, match=field):
        contract.validate(_contract(**changes))


def test_contract_survives_the_round_trip():
    value = contract.validate(_contract())
    raw = codec.encode(value)
    assert codec.decode(contract.Contract, raw, what="contract") == value


def _bundle(path="model.onnx", role="model"):
    zero = "sha256:" + "0" * 64
    files = (
        bundle.BundleFile(path=path, role=role, sha256=zero, size=1),
        bundle.BundleFile(path="contract.json", role="contract", sha256=zero, size=1),
    )
    return bundle.BundleManifest(
        model="m",
        version="1",
        target="rpi5",
        precision="fp32",
        engine="onnxruntime",
        engine_versions=">=1.20",
        files=files,
    )


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "a\\b", "contract.json"])
def test_bundle_paths_that_leave_the_folder_are_refused(path):
    with pytest.raises(BadInputError, match="unsafe or repeated"):
        bundle.validate(_bundle(path=path))


def test_bundle_without_model_is_refused_and_unknown_roles_are_kept():
    with pytest.raises(BadInputError, match="no model file"):
        bundle.validate(_bundle(role="hologram"))
    assert bundle.validate(_bundle()).required(bundle.Role.MODEL).path == "model.onnx"


def test_policy_thresholds_are_refused_when_written():
    with pytest.raises(BadInputError, match="error_rate_max"):
        messages.check_policy(messages.Policy(error_rate_max=math.nan))
    with pytest.raises(BadInputError, match="trial_tries"):
        messages.check_policy(messages.Policy(trial_tries=0))
    live = messages.Policy(overlap=False, shadow=Shadow(agreement_min=0.9))
    with pytest.raises(BadInputError, match=r"policy\.overlap"):
        messages.check_policy(live)
    for cores in ((2, 2), (-1,), (1024,)):
        with pytest.raises(BadInputError, match=r"policy\.cores"):
            messages.check_policy(messages.Policy(cores=cores))


def test_os_errors_become_the_right_branch_of_the_tree(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(BadInputError, match="cannot read"), translate_os_errors("read", missing):
        missing.read_bytes()
    with pytest.raises(ResourceError, match="No space left"), translate_os_errors("write", "x"):
        raise OSError(28, "No space left on device")


def test_every_error_has_its_documented_exit_code():
    def tree(kind):
        return {kind.__name__: kind.exit_code} | {
            name: code for sub in kind.__subclasses__() for name, code in tree(sub).items()
        }

    codes = tree(EdgekitError)
    expected = {
        "UsageError": 2,
        "BadInputError": 3,
        "GateFailedError": 4,
        "UnavailableError": 5,
        "ResourceError": 6,
        "BugError": 70,
    }
    assert expected.items() <= codes.items()


@pytest.mark.parametrize("raw", [b'{"a\x80":1}', b'"\xe2\x28"', b"[" * 100_000, b'{"x":' * 9999])
def test_broken_utf8_and_deep_nesting_are_bad_input(raw):
    from typing import Any

    with pytest.raises(BadInputError):
        codec.decode(Any, raw, what="message")
