"""The loader: one per node, it turns what the other services say into kernel state."""
