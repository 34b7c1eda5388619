"""W2SVD: weak-to-strong video distillation."""
