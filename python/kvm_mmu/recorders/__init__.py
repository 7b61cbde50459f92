"""What a recorder does: the kit, our two recorders, their markers, memory and quiet updates."""

from kvm_mmu.recorders.driving import Earlier, Later
from kvm_mmu.trace.replay.recorder import register

register(Earlier())
register(Later())
