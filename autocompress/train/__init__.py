"""Training: the loop, its losses and schedule."""
