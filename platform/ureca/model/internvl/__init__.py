"""InternVL bases: presets, architectures, conversion from the official layout, licenses."""
