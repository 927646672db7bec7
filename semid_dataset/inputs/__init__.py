"""Files to vectors and the items they belong to."""
