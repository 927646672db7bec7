"""The same over partitions, for more items than memory holds."""
