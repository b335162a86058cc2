"""The stored formats that both programs share: records, samples, recipes, dataset tables and view presets.

Both programs, `pipeline` and `training`, read this package, and share no other code. It needs numpy, Pillow, fsspec and
pydantic, and imports nothing else of ours.
"""
