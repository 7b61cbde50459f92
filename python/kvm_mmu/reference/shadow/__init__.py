"""Shadow pages: the hash, the active list, reverse maps, zap and reclaim."""
