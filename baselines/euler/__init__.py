"""Euler: the teacher itself with few steps, untrained."""
