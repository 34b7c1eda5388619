"""DMD: distribution matching distillation."""
