"""Semantic IDs for a PyTorch Dataset: trained on first access, cached on disk, shared by every process."""
