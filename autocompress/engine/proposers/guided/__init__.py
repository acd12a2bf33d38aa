"""The guided sampler: sensitivities, cost tables, a loss model, and exact allocation."""
