"""Size a training run: memory, time and placement."""
