"""Beyond one machine: what a size would cost (plan.py), training it in shards (sharded.py) from tar files (shards.py), and
weights that others have published (released.py, out of pickles: torchfile.py, pickles.py)."""
