"""The fault on direct shadow pages as v5.0 to v5.4 have it: tables first, then the level."""
