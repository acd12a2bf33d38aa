"""Cost models: what a compressed network is expected to cost on a device."""
