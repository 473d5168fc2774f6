"""Visual attributes of regions: measure them from pixels, and read them from captions."""
