"""One file a dataset: `assets(root, options)` yields every Asset of it, without reading a shape."""
