"""Checkpoints: save, restore, keep the best, and sync a run with S3."""
