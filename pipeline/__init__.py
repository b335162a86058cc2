"""From raw 3D datasets to shards."""
