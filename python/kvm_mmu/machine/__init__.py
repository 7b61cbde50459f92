"""Policy over the core: VMs, vCPUs, memslots, generations, profiles and zap plans as values."""
