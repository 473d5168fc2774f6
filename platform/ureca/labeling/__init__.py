"""Label a corpus: mask trees, describers, distractors, and the uniqueness check."""
