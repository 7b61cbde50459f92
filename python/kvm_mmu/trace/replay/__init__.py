"""A recording replayed: its inputs drive a model, whose outputs are compared with those recorded."""
