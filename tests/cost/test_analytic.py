import dataclasses
import itertools
import random

import pytest

from autocompress.core.plan import Plan
from autocompress.cost.analytic import energy_mj, latency_ms, roofline
from autocompress.cost.hardware import HardwareSpec, hardware_names, read_hardware
from autocompress.cost.workload import Op, Value, Workload, workload
from autocompress.errors import InputError
from autocompress.models.network import Network
from autocompress.models.students import STUDENTS
from autocompress.targets import TARGETS
from autocompress.transforms.dry_run import dry_run
from tests.cost.test_workload import net_of, settings

ORT = TARGETS["onnxruntime"]().abilities

CHIP = HardwareSpec(
    name="chip", title="chip", macs_per_s={(8, 8): 4e9, (32, 32): 1e9},
    pj_per_mac={(8, 8): 1.0, (32, 32): 10.0}, bytes_per_s=1e9, pj_per_byte=100.0,
    on_chip_bytes=1000, on_chip_bytes_per_s=10e9, on_chip_pj_per_byte=2.0,
    elements_per_s=2e9, overhead_us=1.0, static_mw=5.0,
)  # fmt: skip


def single(kind: str, size: int, out: int, **given: int) -> Workload:
    op = Op("a", "a", kind, f"aten.{kind}.default", ("x",), "y", **given)
    return Workload((op,), {"x": Value("x", size, 8), "y": Value("y", out, 8)}, ("y",))


def test_a_layer_by_hand() -> None:
    layer = single("conv", 300, 100, macs=40_000, weight_bytes=2000, w_bits=8, a_bits=8)
    (cost,) = roofline(layer, CHIP)
    assert (cost.external_bytes, cost.bytes_moved) == (2000, 2400)
    assert cost.bound == "compute"  # 10 µs against 2
    assert cost.ms == pytest.approx(0.010 + 0.001)
    assert cost.energy_mj == pytest.approx(1e-9 * (40_000 * 1 + 2000 * 100 + 2400 * 2) + 11e-6 * 5)
    (slow,) = roofline(single("conv", 300, 100, macs=400, weight_bytes=5000), CHIP)
    assert slow.bound == "memory"
    assert slow.ms == pytest.approx(0.005 + 0.001)


def test_weights_stay_on_the_chip_only_if_all_fit_beside_the_activations() -> None:
    small = single("conv", 300, 100, macs=1, weight_bytes=600)
    assert roofline(small, CHIP)[0].external_bytes == 0
    large = single("conv", 300, 100, macs=1, weight_bytes=601)
    assert roofline(large, CHIP)[0].external_bytes == 601
    wide = single("conv", 900, 101, macs=1, weight_bytes=10)
    assert roofline(wide, CHIP)[0].external_bytes == 10 + 1001


def test_operators_without_multiply_adds() -> None:
    (view,) = roofline(single("view", 100, 100), CHIP)
    assert (view.ms, view.energy_mj, view.bytes_moved, view.bound) == (0, 0, 0, "free")
    (added,) = roofline(single("elementwise", 400, 400), CHIP)
    assert added.ms == pytest.approx(400 / 2e9 * 1e3 + 0.001)
    assert added.energy_mj > 400 * 10e-9
    (table,) = roofline(single("move", 4, 50, weight_bytes=10**6), CHIP)
    assert table.bytes_moved == 4 + 50 + 50  # the rows asked for


def test_an_unknown_operator_is_an_error_or_said() -> None:
    found = single("unknown", 100, 100)
    for cost in (latency_ms, energy_mj):
        with pytest.raises(InputError, match=r"none for aten.unknown.default"):
            cost(found, CHIP)
        assert cost(found, CHIP, partial=True) > 0
    assert roofline(found, CHIP)[0].bound == "unknown"


def figures(net: Network, plan: Plan, device: HardwareSpec) -> tuple[float, ...]:
    found = workload(dry_run(net, plan, ORT), ORT)
    return (
        found.macs,
        found.weight_bytes,
        sum(cost.bytes_moved for cost in roofline(found, device)),
        latency_ms(found, device),
        energy_mj(found, device),
    )


@pytest.mark.parametrize("device", [read_hardware(name) for name in hardware_names()] + [CHIP])
@pytest.mark.parametrize("name", [*STUDENTS, "attention"])
def test_fewer_channels_or_bits_never_raise_a_cost(name: str, device: HardwareSpec) -> None:
    net, chance = net_of(name), random.Random(0)
    keeps, widths = [1, 0.75, 0.5, 0.25], [32, 16, 8, 7, 6, 5, 4, 3, 2]
    whole = [(w, 32) for w in widths] + [(w, 8) for w in widths[2:]]
    for a, b in itertools.pairwise(whole):
        if a[1] == b[1]:
            before, after = (figures(net, settings(net, 1, *x), device) for x in (a, b))
            assert all(x <= y * (1 + 1e-12) for x, y in zip(after, before, strict=True)), (a, b)
    for _ in range(6):
        plan: dict[str, float] = {f"{u.name}/keep": chance.choice(keeps) for u in net.units}
        for layer in net.layers:
            plan[f"{layer.name}/w_bits"] = chance.choice(widths)
        less = dict(plan)
        for key in chance.sample(sorted(plan), 4):
            steps = keeps if key.endswith("/keep") else widths
            less[key] = steps[min(steps.index(plan[key]) + 1, len(steps) - 1)]
        before, after = figures(net, Plan(plan), device), figures(net, Plan(less), device)
        assert all(x <= y * (1 + 1e-12) for x, y in zip(after, before, strict=True))


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("device", hardware_names())
def test_integers_cost_less_than_floats(name: str, device: str) -> None:
    net, chip = net_of(name), read_hardware(device)
    floats, ints = (figures(net, settings(net, 1, w, w), chip) for w in (32, 8))
    assert all(x <= y for x, y in zip(ints, floats, strict=True))
    assert ints[3] < floats[3]


@pytest.mark.parametrize("name", STUDENTS)
def test_where_few_bits_pay(name: str) -> None:
    net = net_of(name)
    fusion, core = read_hardware("bit-fusion"), read_hardware("avx2-core")
    at = {w: settings(net, 1, w, 8) for w in (8, 4, 2)}
    times = [figures(net, at[w], fusion)[3] for w in (8, 4, 2)]
    assert times[0] > times[1] > times[2]
    assert figures(net, at[4], core)[3] <= figures(net, at[8], core)[3]


def test_costs_are_pure() -> None:
    found = workload(dry_run(net_of("resnet"), Plan(), ORT), ORT)
    before = dataclasses.astuple(found.ops[0])
    assert roofline(found, CHIP) == roofline(found, CHIP)
    assert dataclasses.astuple(found.ops[0]) == before
