"""Channel groups: which channels can only be removed together."""
