"""Corpora: the region table, and readers of images with masks. No torch, no Ray."""
