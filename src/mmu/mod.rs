//! The core: words, nouns, verbs. No Python, no I/O, no clock, no randomness.
