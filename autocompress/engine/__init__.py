"""The search: study, samplers, evaluation of one plan, and the driver."""
