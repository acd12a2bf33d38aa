"""The words of the search as data: plans, spaces, budgets, scores, artifacts. No torch."""

from autocompress.spec.abilities import Abilities
from autocompress.spec.artifact import Artifact
from autocompress.spec.budget import Budget
from autocompress.spec.plan import Plan, Recipe
from autocompress.spec.score import Score
from autocompress.spec.space import SearchSpace, SpaceTemplate

__all__ = [
    "Abilities",
    "Artifact",
    "Budget",
    "Plan",
    "Recipe",
    "Score",
    "SearchSpace",
    "SpaceTemplate",
]
