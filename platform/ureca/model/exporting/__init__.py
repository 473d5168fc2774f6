"""Export a trained captioner as a plain InternVL checkpoint with a model card, and verify it."""
