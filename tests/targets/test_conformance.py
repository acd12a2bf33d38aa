"""What every registered target must do."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import ArtifactError, ConfigError, InputError
from autocompress.models.network import Network
from autocompress.spec.artifact import Artifact
from autocompress.targets import TARGETS, make_target
from autocompress.targets.timing import measure
from tests.targets.support import builder, inputs, pruned, residual, rounded, wide

pytestmark = pytest.mark.parametrize("name", sorted(TARGETS))


def test_name_and_arguments(name: str) -> None:
    target = make_target(name, threads=2, batch_size=3)
    assert (target.name, target.threads, target.batch_size) == (name, 2, 3)
    assert target.suffix.startswith(".")
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        make_target(name, threads=0)
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
        make_target(name + "x")


def test_an_unchanged_network_computes_the_same(name: str, tmp_path: Path) -> None:
    net = residual()
    artifact = builder(name, net).build(rounded(net), tmp_path / "a")
    session = TARGETS[name]().open(artifact.path)
    for count in (1, 2, 7):
        (x,) = inputs(net, count)
        np.testing.assert_allclose(session(x.numpy()), net(x).numpy(), atol=1e-5)


def test_the_artifact_is_the_file(name: str, tmp_path: Path) -> None:
    net = residual()
    path = tmp_path / "new" / "a"
    artifact = builder(name, net).build(rounded(net, 4), path)
    assert artifact == Artifact.of(path, name)
    assert [p.name for p in path.parent.iterdir()] == ["a"]  # nothing half-written stays


def test_the_same_plan_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    net = residual()
    first = builder(name, net).build(rounded(net, 3), tmp_path / "a")
    copy = pickle.loads(pickle.dumps(builder(name, net)))
    assert copy.build(rounded(net, 3), tmp_path / "b").sha256 == first.sha256
    assert copy.build(rounded(net, 5), tmp_path / "b").sha256 != first.sha256


def test_bytes_shrink_with_bits(name: str, tmp_path: Path) -> None:
    def sizes(net: Network) -> list[int]:
        return [
            builder(name, net).build(rounded(net, bits), tmp_path / "a").size_bytes
            for bits in (32, 16, 8, 7, 6, 5, 4, 3)
        ]

    found = sizes(wide())
    assert found == sorted(set(found), reverse=True)
    found = sizes(residual())  # so small that unpacking may cost more than it saves
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("a_bits", [8, 32])
def test_every_width_it_declares(name: str, a_bits: int, tmp_path: Path) -> None:
    net = residual()
    target = TARGETS[name]()
    (x,) = inputs(net)
    for bits in target.abilities.w_bits:
        compressed = rounded(net, bits, a_bits, target.abilities)
        session = target.open(builder(name, net).build(compressed, tmp_path / "a").path)
        expected = compressed(x).numpy()
        tolerance = 2e-3 if a_bits == 32 else 0.06
        error = np.abs(session(x.numpy()) - expected).max()
        assert error <= tolerance * np.abs(expected).max(), bits


def test_fewer_channels(name: str, tmp_path: Path) -> None:
    net = residual()
    small = pruned(net, 0.5)
    compressed = rounded(small)
    artifact = builder(name, net).build(compressed, tmp_path / "a")
    (x,) = inputs(net)
    session = TARGETS[name]().open(artifact.path)
    np.testing.assert_allclose(session(x.numpy()), small(x).numpy(), atol=1e-5)
    whole = builder(name, net).build(rounded(net), tmp_path / "b")
    assert artifact.size_bytes < 0.7 * whole.size_bytes


def test_building_changes_nothing(name: str, tmp_path: Path) -> None:
    net = residual()
    compressed = rounded(net, 4, 8)
    before = compressed.network.fingerprint
    codes = {key: weight.codes.copy() for key, weight in compressed.weights.items()}
    builder(name, net).build(compressed, tmp_path / "a")
    assert compressed.network.fingerprint == before
    assert all((compressed.weights[key].codes == value).all() for key, value in codes.items())


def test_a_file_that_is_not_whole(name: str, tmp_path: Path) -> None:
    net = residual()
    path = builder(name, net).build(rounded(net, 4), tmp_path / "a").path
    path.write_bytes(path.read_bytes()[:-700])
    for broken in (path, tmp_path / "missing"):
        with pytest.raises(ArtifactError, match="model file") as caught:
            TARGETS[name]().open(broken)
        assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    net = residual()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be writable"):
        builder(name, net).build(rounded(net), tmp_path / "file" / "a")


def test_sessions(name: str, tmp_path: Path) -> None:
    net = residual()
    path = builder(name, net).build(rounded(net, 4), tmp_path / "a").path
    session = TARGETS[name]().open(path)
    assert session.load_ms > 0
    assert session.peak_memory_bytes is None or session.peak_memory_bytes >= 0
    (x,) = session.example_inputs(3)
    assert x.shape == (3, 3, 8, 8)
    assert session(x).shape == (3, 5)
    with pytest.raises(ValueError, match="1 inputs, not 2"):
        session(x, x)
    timing = measure(session, session, (x,), reference_ms=None, max_seconds=0.05)
    assert 0 < timing.low_ms <= timing.latency_ms <= timing.high_ms


def test_plans_of_single_layers(name: str, tmp_path: Path) -> None:
    """Layers of all kinds of numbers beside each other."""
    net = residual()
    (x,) = inputs(net)
    mixed = {"stem": 8, "a": 3, "b": 2, "down": 32, "deep": 5, "head": 16}
    parts = {key: rounded(net, bits) for key, bits in mixed.items()}
    weights, params = {}, {}
    for layer in net.layers:
        part = parts[layer.name]
        params[layer.weight] = part.network.params[layer.weight]
        if layer.weight in part.weights:
            weights[layer.weight] = part.weights[layer.weight]
    compressed = replace(rounded(net), network=net.replace(params=params), weights=weights)
    session = TARGETS[name]().open(builder(name, net).build(compressed, tmp_path / "a").path)
    np.testing.assert_allclose(session(x.numpy()), compressed(x).numpy(), atol=2e-3)


def test_odd_codes_that_are_all_positive(name: str, tmp_path: Path) -> None:
    net = residual()
    weight = net.params["a.weight"].abs() + 0.1
    compressed = rounded(net.replace(params={"a.weight": weight}), 2)
    (x,) = inputs(net)
    session = TARGETS[name]().open(builder(name, net).build(compressed, tmp_path / "a").path)
    np.testing.assert_allclose(session(x.numpy()), compressed(x).numpy(), rtol=1e-3, atol=2e-2)
