"""Analytic costs: the least time and the energy of a workload on a described device.

The roofline is a bound: no schedule is faster than it, and real kernels are slower. It is the
roofline of Williams, Waterman & Patterson (Communications of the ACM 52(4), 2009), with one roof
for each memory (Ilic, Pratas & Sousa, IEEE Computer Architecture Letters 13(1), 2014).
"""

import math
from dataclasses import dataclass

from autocompress.cost.hardware import HardwareSpec
from autocompress.cost.memory import live_bytes
from autocompress.cost.workload import Op, Workload
from autocompress.errors import InputError

__all__ = ["OpCost", "energy_mj", "latency_ms", "roofline"]


@dataclass(frozen=True)
class OpCost:
    """What one operator costs on a device.

    ``ms``: milliseconds; ``energy_mj``: millijoules; ``bound``: "compute" or "memory", whichever
    takes longer, "free" for a view, "unknown" for an operator without a rule, of which only the
    movement of its tensors counts. ``bytes_moved``: tensors and weights read and written;
    ``external_bytes``: those of them that go to or come from external memory.
    """

    op: Op
    ms: float
    bound: str
    bytes_moved: int
    external_bytes: int
    energy_mj: float


def roofline(workload: Workload, device: HardwareSpec) -> tuple[OpCost, ...]:
    """Return the cost of every operator of a workload, in order, for one input.

    An operator reads its inputs and weights once and writes its output once. Weights come from
    external memory unless all of them fit on the chip beside the most activations that are alive
    at once; activations are on the chip during an operator where all that are alive fit. What is
    external passes through the chip's memory too. Views cost nothing. What has no multiply-adds
    is bound by memory or by the element-wise rate, and an element takes as much energy as a float
    multiply-add. Unknown operators (``workload.unknown``) have the bound "unknown"; their figures
    are of data movement alone.
    """
    alive = live_bytes(workload)
    resident = workload.weight_bytes + max(alive, default=0) <= device.on_chip_bytes
    return tuple(
        _cost(op, workload, device, resident, here <= device.on_chip_bytes)
        for op, here in zip(workload.ops, alive, strict=True)
    )


def _cost(op: Op, workload: Workload, device: HardwareSpec, resident: bool, fits: bool) -> OpCost:
    if op.kind == "view":
        return OpCost(op, 0.0, "free", 0, 0, 0.0)
    output = workload.values[op.output]
    inputs = [workload.values[name] for name in op.inputs]
    tensors = output.nbytes + sum(value.nbytes for value in inputs)
    # Moving operators read the rows of a table that they are asked for, not all of it.
    weights = min(op.weight_bytes, output.nbytes) if op.kind == "move" else op.weight_bytes
    moved = weights + tensors
    external = (0 if resident else weights) + (0 if fits else tensors)
    if op.kind == "unknown":
        compute, picojoules = 0.0, 0.0
    elif op.macs:
        compute = op.macs / device.rate(op.w_bits, op.a_bits)
        picojoules = op.macs * device.mac_pj(op.w_bits, op.a_bits)
    else:
        elements = max(output.elements, sum(value.elements for value in inputs))
        compute = elements / device.elements_per_s
        picojoules = elements * device.mac_pj(32, 32)
    memory = max(external / device.bytes_per_s, moved / device.on_chip_bytes_per_s)
    # Williams et al. 2009: attainable = min(peak, bandwidth × intensity); as a time, the longest.
    seconds = max(compute, memory) + device.overhead_us * 1e-6
    # Horowitz 2014: energy is that of the operations, of the data moved and of waiting.
    picojoules += external * device.pj_per_byte + moved * device.on_chip_pj_per_byte
    energy = picojoules * 1e-9 + seconds * device.static_mw
    bound = "unknown" if op.kind == "unknown" else "compute" if compute > memory else "memory"
    return OpCost(op, seconds * 1e3, bound, moved, external, energy)


def latency_ms(workload: Workload, device: HardwareSpec, *, partial: bool = False) -> float:
    """Return the roofline latency in milliseconds for one input.

    Raises InputError that names the operators without a rule, unless ``partial``: then they count
    with the data that they move, and the figure lacks their arithmetic.
    """
    _check(workload, partial)
    return math.fsum(cost.ms for cost in roofline(workload, device))


def energy_mj(workload: Workload, device: HardwareSpec, *, partial: bool = False) -> float:
    """Return the energy in millijoules for one input; errors and ``partial`` as in latency_ms."""
    _check(workload, partial)
    return math.fsum(cost.energy_mj for cost in roofline(workload, device))


def _check(workload: Workload, partial: bool) -> None:
    if workload.unknown and not partial:
        raise InputError(
            "Every operator needs a rule to have a cost; there is none for "
            f"{', '.join(workload.unknown)}. Measure the network, or ask for a partial figure."
        )
