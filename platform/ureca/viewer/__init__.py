"""Visualization: drawn regions, plots, gallery, report."""
