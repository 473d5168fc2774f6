"""Training data: index of the region table, sampling of steps, packed batches."""
