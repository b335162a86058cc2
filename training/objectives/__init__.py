"""One file a method: what a training step computes."""
