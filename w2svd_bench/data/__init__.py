"""Procedural talking portraits, and the pool of training latents."""
