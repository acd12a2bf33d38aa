"""The guided sampler: cache, cost tables, a loss model, and exact allocation."""
