"""What a training run needs before a GPU is rented: memory by role, evaluations, operations, disk, and advice."""
