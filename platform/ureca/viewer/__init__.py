"""Pictures for people: regions drawn on images, plots, and the report page. Nothing here needs a browser."""
