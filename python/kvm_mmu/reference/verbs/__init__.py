"""What can happen to a VM: faults, ioctls, notifiers, zaps. Each comes to the page table that the VM has."""
