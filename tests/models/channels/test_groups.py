import functools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import PlanError
from autocompress.models.network import Network
from autocompress.models.students import STUDENTS
from autocompress.models.trace import trace
from tests.models.group_nets import (
    NETS,
    NORMS_OVER_CHANNELS,
    Shuffle,
    choose,
    masked,
    prune,
    resnet,
    traced,
)

ALL = {**NETS, **{f"student {name}": partial(make, in_channels=3, num_classes=5)
                  for name, make in STUDENTS.items()}}  # fmt: skip


@functools.cache  # networks are never changed in place
def network_of(name: str) -> Network:
    torch.manual_seed(0)
    return traced(ALL[name]())


@pytest.mark.parametrize("name", sorted(ALL))
def test_pruned_network_equals_the_masked_one(name: str) -> None:
    network = network_of(name)
    x = torch.randn(3, 3, 8, 8)
    whole = network(x)
    assert network.units
    for seed in range(4):
        kept = choose(network, seed)
        small = prune(network, kept)
        out = small(x)
        assert out.shape == whole.shape
        assert torch.isfinite(out).all()
        removed = sum(u.channels - len(kept[u.name]) for u in network.units)
        assert (sum(p.numel() for p in small.params.values())
                < sum(p.numel() for p in network.params.values())) == (removed > 0)  # fmt: skip
        if name not in NORMS_OVER_CHANNELS:
            torch.testing.assert_close(out, masked(network, kept)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_unit_can_be_reduced_to_any_single_class(name: str) -> None:
    network = network_of(name)
    x = torch.randn(2, 3, 8, 8)
    for unit in network.units:
        for channel in (0, unit.channels - 1):
            assert prune(network, {unit.name: [channel]})(x).shape == (2, 5)
    smallest = prune(network, {unit.name: [0] for unit in network.units})
    assert smallest(x).shape == (2, 5)
    assert all(0 not in value.shape for value in smallest.params.values())


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_layer_is_produced_by_a_unit_or_fixed_with_a_reason(name: str) -> None:
    network = network_of(name)
    producers = {layer for unit in network.units for layer in unit.producers}
    assert producers | set(network.fixed) == {layer.name for layer in network.layers}
    assert producers.isdisjoint(network.fixed)
    assert all(reason.strip() for reason in network.fixed.values())
    names = [unit.name for unit in network.units]
    assert len(set(names)) == len(names)
    for unit in network.units:
        assert unit.channels >= 2
        assert unit.name.split(":")[0] == unit.producers[0].split(":")[0]
        for slot in unit.slots:
            assert len(slot.index) == unit.channels
            assert len({len(index) for index in slot.index}) == 1
            assert all(list(index) == sorted(set(index)) for index in slot.index)


@pytest.mark.parametrize("name", sorted(ALL))
def test_slots_of_different_units_never_overlap(name: str) -> None:
    seen: set[tuple[str, int, int]] = set()
    for unit in network_of(name).units:
        for slot in unit.slots:
            places = {(slot.param, slot.dim, p) for index in slot.index for p in index}
            assert seen.isdisjoint(places)
            seen |= places


def sizes(network: Network) -> dict[str, int]:
    return {unit.name: unit.channels for unit in network.units}


def test_chain_has_one_unit_for_each_hidden_layer() -> None:
    network = network_of("chain")
    assert sizes(network) == {"0.0": 8, "1.0": 6}
    first = network.units[0]
    assert [(s.param, s.dim) for s in first.slots] == [
        ("0.0.weight", 0), ("0.0.bias", 0), ("1.0.weight", 1),
    ]  # fmt: skip
    assert first.slots[2].index == tuple((c,) for c in range(8))
    assert (first.producers, first.consumers) == (("0.0",), ("1.0",))
    assert dict(network.fixed) == {"2.fc": "its channels reach the network's output"}


def test_padded_shortcuts_nest_the_stages() -> None:
    network = network_of("padded")
    stages = [u for u in network.units if "0.0" in u.producers or u.name.endswith("conv2")]
    assert [(u.name, u.channels) for u in stages] == [("0.0", 8), ("3.conv2", 8), ("5.conv2", 16)]
    assert stages[0].producers[-1] == "6.conv2"  # the first stage's channels reach the last
    kept = {"0.0": [1, 2], "3.conv2": [0, 7], "5.conv2": [0, 1, 15]}
    pads = [n for n in network.graph.nodes if "constant_pad_nd" in str(n.target)]
    edits = network.groups.edits(kept)
    assert [edits[n.name][1][4:] for n in pads] == [[1, 1], [2, 1]]


def test_concatenation_gives_a_unit_for_each_branch() -> None:
    network = network_of("inception")
    assert sizes(network) == {"stem.0": 8, "a.0": 4, "b.0": 6, "c.0": 5, "mix.0": 9}
    mix = {unit.name: unit.slots[-1] for unit in network.units}
    assert mix["b.0"].param == "mix.0.weight"
    assert mix["b.0"].index == tuple((4 + c,) for c in range(6))


def test_shuffle_keeps_the_inner_channels_of_each_branch_free() -> None:
    network = traced(Shuffle(16, 2))
    assert {"branches.0.0.0": 8, "branches.1.0.0": 8, "last.0": 12}.items() <= sizes(
        network
    ).items()
    assert "stem.0" in sizes(network)


def test_depthwise_layers_follow_their_input_and_change_their_groups() -> None:
    network = network_of("multiplier")
    deep = network.layer("1")
    assert deep.kind == "grouped" or deep.kind == "depthwise"
    unit = network.units[0]
    assert (unit.producers, unit.consumers) == (("0.0", "1"), ("1", "3.0"))
    assert unit.slots[-1].index[1] == (3, 4, 5)
    assert network.groups.edits({unit.name: [0, 4]})[deep.node][6] == 2


def test_many_small_groups_go_whole_and_few_large_ones_lose_positions() -> None:
    unit = next(u for u in network_of("resnext").units if "2.0" in u.producers)
    assert unit.channels == 8
    unit = next(u for u in network_of("shuffle_v1").units if "two.0" in u.consumers)
    assert unit.channels == 3
    assert unit.slots[0].index[1] == (1, 4, 7, 10, 13, 16, 19, 22, 25)


def test_flatten_gives_each_channel_all_its_positions() -> None:
    unit = network_of("flatten").units[1]
    assert unit.slots[-1].index[2] == (8, 9, 10, 11)


def test_position_embedding_token_scale_and_norm_are_slots() -> None:
    unit = next(u for u in network_of("mlp").units if "patch" in u.producers)
    slots = {(s.param, s.dim) for s in unit.slots}
    assert {
        ("position", 2),
        ("token", 2),
        ("scale", 0),
        ("norm.weight", 0),
        ("norm.bias", 0),
    } < slots
    assert unit.channels == 12


def test_transformer_prunes_all_but_what_attention_multiplies() -> None:
    network = network_of("transformer")
    assert sizes(network) == {"patch": 12, "blocks.0.linear1": 20, "blocks.1.linear1": 20}
    inner = [f"blocks.{n}.self_attn.in_proj_weight" for n in range(2)]
    assert list(network.fixed) == [*inner, "fc"]
    assert all("attention" in network.fixed[n] for n in inner)
    assert all("not analysed" in network.fixed[n] for n in inner)


def test_a_layer_over_positions_lets_the_channels_pass() -> None:
    network = network_of("mixer")
    assert sizes(network) == {"patch": 12, "up": 20}
    assert network.fixed["one"] == "it mixes positions, not channels"


def test_tied_weights_couple_both_uses() -> None:
    network = network_of("tied")
    assert set(sizes(network).values()) == {8, 6}
    shared = next(u for u in network.units if u.channels == 6)
    assert shared.slots[-1].index[0] == (0, 6)


def test_a_map_of_one_channel_is_fixed_and_says_so() -> None:
    network = network_of("gate")
    assert network.fixed["map"] == "its channel is used by all channels of another layer"
    assert sizes(network)["one"] == 8


def test_split_without_sizes_keeps_its_pieces_equal() -> None:
    torch.manual_seed(0)
    network = trace(Shuffle(16, 2).eval(), (torch.randn(1, 3, 8, 8),))
    x = torch.randn(2, 3, 8, 8)
    for seed in range(3):
        kept = choose(network, seed)
        torch.testing.assert_close(prune(network, kept)(x), masked(network, kept)(x))


def test_unknown_operators_freeze_what_they_touch_and_nothing_else() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.sort(self.b(torch.relu(self.a(x))), -1).values)

    network = traced(Odd(), 6)
    assert sizes(network) == {"a": 8}
    assert network.fixed["b"] == "operator aten.sort.default is not analysed"


def test_computed_sizes_freeze_the_channels_they_count() -> None:
    network = traced(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.Conv2d(8, 4, 3),
                                   nn.Conv2d(4, 2, 3)))  # fmt: skip
    assert sizes(network) == {"2": 4}
    assert network.fixed["0"] == "its channels are counted by a computed size"


def test_keeping_everything_changes_nothing() -> None:
    network = network_of("padded")
    everything = {unit.name: range(unit.channels) for unit in network.units}
    for kept in ({}, everything):
        assert network.groups.edits(kept) == {}
        assert network.groups.slices(kept) == {}


def test_inputs_are_not_changed() -> None:
    network = network_of("shuffle")
    before = network.fingerprint
    prune(network, {unit.name: [0] for unit in network.units})
    assert network.fingerprint == before


@pytest.mark.parametrize("classes", [[], [1, 0], [0, 0], [-1], [8]])
def test_impossible_channels_are_refused(classes: list[int]) -> None:
    groups = network_of("chain").groups
    for call in (groups.edits, groups.slices):
        with pytest.raises(PlanError, match="ascending indices, at least one, below"):
            call({"0.0": classes})


def test_unknown_units_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match=r"Unknown unit '0.1'. Did you mean '0.0'"):
        network_of("chain").groups.edits({"0.1": [0]})


def test_resnet56_is_analysed_in_one_walk() -> None:
    network = traced(resnet("pad", 9, 16), 3, 32, 32)
    assert len(network.units) == 27 + 3
    assert list(network.fixed) == ["28.fc"]
