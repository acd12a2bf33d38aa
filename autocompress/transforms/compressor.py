"""Compressing: a network and a plan in, a new network with codes and ranges out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.errors import PlanError, unknown
from autocompress.models.network import Network
from autocompress.transforms.divergence import divergence
from autocompress.transforms.importance import IMPORTANCES, count_kept
from autocompress.transforms.options import Options
from autocompress.transforms.quantize.placement import integer_layers, rounded_tensors
from autocompress.transforms.quantize.ranges import ActivationRange
from autocompress.transforms.quantize.weights import QuantizedWeight, saturates
from autocompress.transforms.reconstruct.layer import Code
from autocompress.transforms.reconstruct.network import Rebuilt, rebuild
from autocompress.transforms.reference import Reference

__all__ = [
    "ActivationRange",
    "Compressed",
    "Compressor",
    "Options",
    "QuantizedWeight",
    "compress",
]


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network: what a target writes into a file.

    ``network`` holds the simulated values, sliced and dequantized. ``weights``: codes by name of
    parameter, or "float16"; what is absent is float32. ``activations``: by name of node, the
    tensors that are rounded, once for all who read them. ``stored``: biases that the file holds
    finer than its integer kernels, and ``network``, have them. ``effect``: how far the outputs on
    the calibration inputs are from the uncompressed network's (:func:`divergence`), NaN where
    nobody looked. Calling it simulates the file; figures from that are estimates, never
    measurements.
    """

    plan: Plan
    network: Network
    weights: Mapping[str, Code]
    activations: Mapping[str, ActivationRange]
    effect: float = math.nan
    stored: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def integer(self) -> frozenset[str]:
        """Names of the layers that are to run on integers."""
        return integer_layers(self.network, self.plan)

    @property
    def portable(self) -> bool:
        """Whether no CPU's integer kernels overflow: those without VNNI add products in 16 bits."""
        layers = [layer for layer in self.network.layers if layer.name in self.integer]
        weights = [self.weights.get(layer.weight) for layer in layers]
        return not any(isinstance(w, QuantizedWeight) and saturates(w.codes) for w in weights)

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the simulated outputs, rounding activations as the plan says."""
        if not self.activations:
            return self.network.run(*inputs)

        def observe(node: fx.Node, value: Any) -> Tensor | None:
            spec = self.activations.get(node.name)
            return None if spec is None else spec.simulate(value)

        return self.network.run(*inputs, observe=observe)


class Compressor:
    """Compresses one network by any number of plans; its inputs are never changed.

    ``calibration``: tuples of inputs, unlabelled; up to ``images`` of them are used. The same
    arguments give the same results. Memory stays as it is after the first plan.
    """

    def __init__(
        self,
        network: Network,
        calibration: Sequence[tuple[Tensor, ...]],
        abilities: Abilities,
        options: Options | None = None,
        *,
        images: int = 192,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.abilities = abilities
        self.options = options or Options()
        self.reference = Reference(network, calibration, seed=seed, limit_images=images)
        self._orders: Mapping[str, tuple[int, ...]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of tensors that are held between plans."""
        return self.reference.nbytes

    def order(self, unit: str) -> tuple[int, ...]:
        """Return the channels of a unit in the order in which they are removed."""
        units = [known.name for known in self.network.units]
        if unit not in units:
            raise PlanError(unknown("unit", unit, units))
        if not self._orders:
            self._orders = IMPORTANCES[self.options.importance](self.reference)
        return self._orders[unit]

    def kept(self, plan: Plan) -> dict[str, tuple[int, ...]]:
        """Return the ascending channels that stay, of every unit that loses any."""
        found: dict[str, tuple[int, ...]] = {}
        sizes = {unit.name: unit.channels for unit in self.network.units}
        for name, keep in plan.of("keep"):
            count = count_kept(keep, sizes[name])
            if count < sizes[name]:
                found[name] = tuple(sorted(self.order(name)[-count:]))
        return found

    def check(self, plan: Plan) -> None:
        """Raise PlanError if the plan names what does not exist or the target cannot do."""
        layers = [layer.name for layer in self.network.layers]
        units = [unit.name for unit in self.network.units]
        if plan.source.get("family", "teacher") != "teacher":
            raise PlanError(
                f"Only a teacher can be compressed here, not {dict(plan.source)!r}; "
                "build the student first and compress that."
            )
        for knob, known, allowed in (
            ("w_bits", layers, {*self.abilities.w_bits, 32}),
            ("a_bits", layers, {*self.abilities.a_bits, 32}),
        ):
            for name, value in plan.of(knob):
                if name not in known:
                    raise PlanError(unknown("layer", name, known))
                if value not in allowed:
                    raise PlanError(
                        f"{knob} must be what the target offers "
                        f"({', '.join(map(str, sorted(allowed)))}), not {value} for '{name}'."
                    )
        for name, value in plan.of("keep"):
            if name in units:
                if not self.abilities.keep:
                    raise PlanError(
                        f"The target cannot write pruned networks; drop '{name}/keep' ({value})."
                    )
            elif name in self.network.fixed:
                raise PlanError(
                    f"The channels of '{name}' cannot be pruned: {self.network.fixed[name]}."
                )
            else:
                raise PlanError(unknown("unit", name, units))

    def compress(self, plan: Plan) -> Compressed:
        """Return the network compressed by a plan; raise PlanError if it does not fit.

        A plan that sets nothing returns the very same network.
        """
        self.check(plan)
        network, rebuilt = self._rebuild(plan)
        if rebuilt is None:
            return Compressed(plan, self.network, {}, {}, effect=0.0)
        return Compressed(
            plan,
            network.replace(params=rebuilt.params),
            MappingProxyType(dict(rebuilt.weights)),
            MappingProxyType(dict(rebuilt.activations)),
            divergence(rebuilt.outputs, self.reference.outputs),
            MappingProxyType(dict(rebuilt.stored)),
        )

    def effect(self, plan: Plan, known: Mapping[str, Any]) -> float:
        """Return how far the outputs on the calibration inputs would move, without the network.

        ``known``: the uncompressed network's values by node; what does not change is taken from it.
        """
        _, rebuilt = self._rebuild(plan, known)
        return 0.0 if rebuilt is None else divergence(rebuilt.outputs, self.reference.outputs)

    def _rebuild(
        self, plan: Plan, known: Mapping[str, Any] | None = None
    ) -> tuple[Network, Rebuilt | None]:
        """Return the sliced network and what is rebuilt of it, None if the plan sets nothing."""
        kept = self.kept(plan)
        if not kept and not any(True for knob in ("w_bits", "a_bits") for _ in plan.of(knob)):
            return self.network, None
        network, slices = self.network.pruned(kept)
        tensors = rounded_tensors(network, plan, self.abilities)
        if known is not None and kept:  # nodes with other arguments give other values
            edits = self.network.groups.edits(kept)
            known = {name: value for name, value in known.items() if name not in edits}
        rebuilt = rebuild(
            self.reference,
            network,
            plan,
            tensors,
            slices,
            self.options,
            self.abilities,
            known=known,
        )
        return network, rebuilt


def compress(
    network: Network,
    plan: Plan,
    calibration: Sequence[tuple[Tensor, ...]],
    abilities: Abilities,
    options: Options | None = None,
) -> Compressed:
    """Return a network compressed by one plan; see :class:`Compressor` for the rest."""
    return Compressor(network, calibration, abilities, options).compress(plan)
