"""Monitoring of a training run: metrics, in-loop evaluation, trackers."""
