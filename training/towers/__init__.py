"""Image and text tower (clip), point tower (points)."""
