"""What every registered target must do."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.core.artifact import Artifact
from autocompress.core.plan import Plan
from autocompress.errors import ArtifactError, ConfigError, InputError
from autocompress.models.network import Network
from autocompress.targets import TARGETS, make_target
from autocompress.targets.timing import measure
from autocompress.transforms.dry_run import dry_run
from tests.targets.support import (
    NETS,
    builder,
    inputs,
    network,
    pruned,
    residual,
    rounded,
    wide,
)

pytestmark = pytest.mark.parametrize("name", sorted(TARGETS))


@pytest.fixture(autouse=True)
def _installed(name: str) -> None:
    try:
        make_target(name)
    except ConfigError as error:
        pytest.skip(str(error))


def test_name_and_arguments(name: str) -> None:
    target = make_target(name, threads=2, batch_size=3)
    assert (target.name, target.threads, target.batch_size) == (name, 2, 3)
    assert target.suffix.startswith(".")
    assert target.version.startswith(f"{name} ")
    assert target.version[-1].isdigit()
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


def test_bytes_shrink_with_bits(name: str) -> None:
    widths = (32, 16, 8, 7, 6, 5, 4, 3, 2)
    stored = [TARGETS[name]().abilities.stored(bits) for bits in widths]
    assert stored == sorted(stored, reverse=True)
    assert all(kept >= bits for kept, bits in zip(stored, widths, strict=True))

    def sizes(net: Network) -> list[int]:
        return [len(builder(name, net).content(rounded(net, bits))) for bits in widths]

    found = sizes(wide())
    for index in range(len(widths) - 1):
        more, less = found[index : index + 2]
        if stored[index] > stored[index + 1]:
            assert more > less, widths[index]
        else:
            assert abs(more - less) < 0.02 * more, widths[index]  # the scales' digits
    if len(set(stored)) == len(stored):  # so small that unpacking may cost more than it saves
        found = sizes(residual())
        assert found[:-1] == sorted(found[:-1], reverse=True)


def test_content_is_what_is_built(name: str, tmp_path: Path) -> None:
    net = residual()
    compressed = rounded(net, 4, 8)
    path = builder(name, net).build(compressed, tmp_path / "a").path
    assert path.read_bytes() == builder(name, net).content(compressed)


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
    again = session.again()
    np.testing.assert_array_equal(again(x), session(x))
    np.testing.assert_array_equal(again.again()(x[:1]), session(x[:1]))
    timing = measure([session, again], session, (x,), reference_ms=None, max_seconds=0.05)
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


PLANS = {
    "float32": (32, 32, 1),
    "integer": (8, 8, 1),
    "packed": (3, 32, 1),
    "mixed": (4, 8, 3),
    "pruned": (8, 8, 1),
}


@pytest.mark.parametrize("plan", sorted(PLANS))
@pytest.mark.parametrize(("kind", "shape"), NETS)
def test_profiles(name: str, kind: type, shape: tuple[int, ...], plan: str, tmp_path: Path) -> None:
    """Every layer is in the profile, and nearly all of the time is some node's."""
    net = network(kind, *shape)
    w_bits, a_bits, step = PLANS[plan]
    settings = {f"{layer.name}/w_bits": w_bits for layer in net.layers[::step]}
    settings |= {f"{layer.name}/a_bits": a_bits for layer in net.layers[::step]}
    if plan == "pruned":
        settings |= {f"{unit.name}/keep": 0.5 for unit in net.units}
    target = TARGETS[name]()
    compressed = dry_run(net, Plan(settings), target.abilities)
    content = builder(name, net).content(compressed, named=True)
    (tmp_path / "named").write_bytes(content)
    session = target.open(tmp_path / "named")
    ops = target.profile(tmp_path / "named", session.example_inputs(), runs=4)
    assert all(op.ms > 0 and op.kind for op in ops)
    nodes = {node.name for node in net.graph.nodes}
    assert {op.node for op in ops} <= nodes | {""}
    assert {layer.node for layer in net.layers} <= {op.node for op in ops}
    assert sum(op.ms for op in ops if op.node) >= 0.9 * sum(op.ms for op in ops)
    if hasattr(session, "fixed_ms"):
        assert sum(op.ms for op in ops) == pytest.approx(session.fixed_ms)
    (x,) = inputs(net)
    plain = target.open(builder(name, net).build(compressed, tmp_path / "plain").path)
    np.testing.assert_array_equal(session(x.numpy()), plain(x.numpy()))


def test_profiles_of_files_without_names(name: str, tmp_path: Path) -> None:
    net = residual()
    path = builder(name, net).build(rounded(net, 8, 8), tmp_path / "a").path
    target = TARGETS[name]()
    ops = target.profile(path, target.open(path).example_inputs(), runs=2)
    assert {op.node for op in ops} == {""}
    with pytest.raises(ArtifactError, match="model file"):
        target.profile(tmp_path / "missing", inputs(net), runs=2)


def test_results_are_copies(name: str, tmp_path: Path) -> None:
    net = residual()
    session = TARGETS[name]().open(builder(name, net).build(rounded(net), tmp_path / "a").path)
    for count in (1, 3):
        (x,) = inputs(net, count)
        first = session(x.numpy())
        kept = first.copy()
        session(2 * x.numpy())
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(session(x.numpy()), kept)
