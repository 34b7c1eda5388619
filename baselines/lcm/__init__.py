"""LCM: latent consistency distillation."""
