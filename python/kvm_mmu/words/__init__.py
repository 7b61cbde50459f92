"""SPTE and role words in words, and back: decode, encode, the names of bits."""
