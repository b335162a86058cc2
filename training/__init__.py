"""From shards to weights."""
