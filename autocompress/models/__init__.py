"""Networks: tracing, the layer table, channel groups, and light student architectures."""
