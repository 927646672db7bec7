"""Tables on disk: folders, keys, entries, the lock, pruning. Knows no vectors."""
