"""How tables and IDs are laid out as bytes: safetensors, the index of keys, the JSON of IDs. Knows no paths."""
