"""Vectors to codes and back: fusion, codebooks, search, uniqueness, figures. Knows no tables."""
