"""Visual attributes of regions: measured from pixels, and parsed from captions."""
