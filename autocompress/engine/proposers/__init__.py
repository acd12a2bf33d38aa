"""The samplers by name; each proposes parameters of the same Optuna study."""

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress.engine.proposers.guided.sampler import GuidedSampler
from autocompress.errors import InputError, unknown

__all__ = ["SAMPLERS", "GuidedSampler", "make_sampler"]


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=True)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=32)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


def _guided(seed: int) -> BaseSampler:
    return GuidedSampler(_tpe(seed), seed)


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType(
    {"guided": _guided, "tpe": _tpe, "nsga2": _nsga2, "gp": _gp, "random": RandomSampler}
)


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return a sampler; raise InputError that names the nearest for an unknown name.

    Seeds are taken modulo 2³², which is as far as they reach.
    """
    if name not in SAMPLERS:
        raise InputError(unknown("sampler", name, SAMPLERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](seed % 2**32)
