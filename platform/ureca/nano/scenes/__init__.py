"""Synthetic scenes: images of simple objects with exact masks, tree and attributes."""
