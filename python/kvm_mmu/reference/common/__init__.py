"""Words and nouns that all kernels and both kinds of page table share, with the host and the lock behind them."""
