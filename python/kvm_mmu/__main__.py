"""`python -m kvm_mmu`: the command line."""

import sys

from kvm_mmu.cli import main

if __name__ == "__main__":
    sys.exit(main())
