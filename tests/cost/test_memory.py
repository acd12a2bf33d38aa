import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.plan import Plan
from autocompress.cost.memory import live_bytes, peak_activation_bytes, peak_operator
from autocompress.cost.workload import Op, Value, Workload, workload
from autocompress.models.trace import trace
from autocompress.targets import TARGETS
from autocompress.transforms.dry_run import dry_run

ORT = TARGETS["onnxruntime"]().abilities


def op(kind: str, inputs: str, output: str) -> Op:
    return Op(output, output, kind, kind, tuple(inputs), output)


def made(ops: list[Op], sizes: dict[str, int], outputs: str, bits: int = 8) -> Workload:
    values = {name: Value(name, size, bits) for name, size in sizes.items()}
    return Workload(tuple(ops), values, tuple(outputs))


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    ops = [op("conv", "x", "a"), op("conv", "a", "b"), op("conv", "b", "c")]
    found = made(ops, {"x": 3, "a": 10, "b": 5, "c": 1}, "c")
    assert live_bytes(found) == (13, 15, 6)
    assert peak_activation_bytes(found) == 15
    assert peak_operator(found) is ops[1]


def test_a_residual_holds_what_it_will_add() -> None:
    ops = [op("conv", "x", "a"), op("conv", "a", "b"), op("elementwise", "bx", "y")]
    found = made(ops, {"x": 4, "a": 8, "b": 4, "y": 4}, "y")
    assert live_bytes(found) == (4 + 8, 4 + 8 + 4, 4 + 4 + 4)


def test_a_concatenation_holds_all_its_parts() -> None:
    ops = [op("conv", "x", "a"), op("conv", "x", "b"), op("move", "ab", "c")]
    found = made(ops, {"x": 2, "a": 3, "b": 5, "c": 8}, "c")
    assert live_bytes(found) == (5, 10, 16)


def test_views_share_storage_and_outputs_stay() -> None:
    ops = [op("conv", "x", "a"), op("view", "a", "v"), op("conv", "x", "b"), op("conv", "v", "c")]
    found = made(ops, {"x": 1, "a": 6, "v": 6, "b": 2, "c": 4}, "bc")
    assert live_bytes(found) == (7, 7, 9, 12)
    kept = made(ops[:2], {"x": 1, "a": 6, "v": 6}, "v")
    assert live_bytes(kept) == (7, 6)


def test_bits_are_packed_and_what_nobody_reads_is_gone() -> None:
    ops = [op("conv", "x", "a"), op("conv", "x", "b")]
    found = made(ops, {"x": 4, "a": 3, "b": 8}, "b", bits=4)
    assert live_bytes(found) == (2 + 2, 2 + 4)


def test_a_network_without_operators_holds_its_outputs() -> None:
    found = made([], {"x": 4}, "xx")
    assert (live_bytes(found), peak_activation_bytes(found)) == ((), 4)
    assert peak_operator(found) is None


def simulated(found: Workload) -> list[int]:
    """Run the list with a heap: allocate before, free what no one will read after."""
    held: dict[int, int] = {}  # storage: bytes
    where: dict[str, int] = {}
    grown: dict[int, int] = {}
    for index, name in enumerate(dict.fromkeys(n for o in found.ops for n in o.inputs)):
        if all(o.output != name for o in found.ops):
            where[name] = index - 1000
    for index, o in enumerate(found.ops):
        view = o.kind == "view"
        where[o.output] = where[o.inputs[0]] if view else index
    for name, store in where.items():
        grown[store] = max(grown.get(store, 0), found.values[name].nbytes)
    for store in where.values():
        if store < 0:
            held[store] = grown[store]
    peaks = []
    for index, o in enumerate(found.ops):
        held[where[o.output]] = grown[where[o.output]]
        peaks.append(sum(held.values()))
        later = {where[n] for p in found.ops[index + 1 :] for n in (*p.inputs, p.output)}
        born = set(range(index + 1)) | {s for s in held if s < 0}
        keep = (later & born) | {where[n] for n in found.outputs if where[n] in held}
        held = {store: size for store, size in held.items() if store in keep}
    return peaks


@pytest.mark.parametrize("seed", range(60))
def test_liveness_is_that_of_a_simulated_run(seed: int) -> None:
    chance = random.Random(seed)
    names = ["x0", "x1"]
    ops: list[Op] = []
    for place in range(chance.randint(1, 14)):
        kind = chance.choice(["conv", "elementwise", "move", "view"])
        count = 1 if kind == "view" else chance.randint(1, min(3, len(names)))
        inputs = tuple(chance.sample(names[-6:], min(count, len(names[-6:]))))
        ops.append(Op(f"v{place}", f"v{place}", kind, kind, inputs, f"v{place}"))
        names.append(f"v{place}")
    values = {n: Value(n, chance.randint(1, 99), chance.choice([4, 8, 32])) for n in names}
    outputs = tuple(dict.fromkeys([f"v{len(ops) - 1}", chance.choice(ops).output]))
    found = Workload(tuple(ops), values, outputs)
    assert list(live_bytes(found)) == simulated(found)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.b(F.relu(self.a(x))))


def test_a_traced_block_by_hand() -> None:
    net = trace(Block().eval(), (torch.randn(1, 4, 6, 6),))
    whole = 4 * 36
    for bits, size in ((32, 4), (8, 1)):
        plan = Plan({f"{n}/{k}": bits for n in "ab" for k in ("w_bits", "a_bits") if bits < 32})
        found = workload(dry_run(net, plan, ORT), ORT)
        assert [o.kind for o in found.ops] == ["conv", "conv", "elementwise"]
        last = 4 if found.values[found.outputs[0]].bits == 32 else 1
        assert live_bytes(found) == (
            size * (whole + 2 * whole),
            size * (whole + 2 * whole + whole),
            size * (whole + whole) + last * whole,
        )
