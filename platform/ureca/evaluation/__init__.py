"""Scores of region captions: metrics, attribute accuracy, uniqueness, and bootstrap intervals."""
