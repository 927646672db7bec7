"""The mapping that users hold, and its figures."""
