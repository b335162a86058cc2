"""What is written down: records, sample encoding, recipes, dataset tables and view presets.

Both programs, `pipeline` and `training`, read this package and meet nowhere else. It needs numpy, Pillow, fsspec and
pydantic, and imports nothing else of ours.
"""
