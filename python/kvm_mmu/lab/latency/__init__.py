"""Latency: how long a zap holds `mmu_lock`, how long vCPUs wait for it, and whether anybody gets on."""
