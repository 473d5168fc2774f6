"""HTTP client of the caption service. Imports neither Ray nor torch."""
