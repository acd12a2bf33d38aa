"""The words of the search as data: plans, spaces, budgets, scores, artifacts. No torch."""

from autocompress.core.abilities import Abilities
from autocompress.core.artifact import Artifact
from autocompress.core.budget import Budget
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import Score
from autocompress.core.space import SearchSpace, SpaceTemplate

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
