"""Images and pages for people: drawn regions, plots, gallery, report."""
