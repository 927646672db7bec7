"""Vectors to a new table: fit, extend, recover. Does not know who asked."""
