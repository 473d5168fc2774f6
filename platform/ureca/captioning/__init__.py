"""Caption corpora with a trained captioner: engines inside Ray Data actors, or a running service."""
