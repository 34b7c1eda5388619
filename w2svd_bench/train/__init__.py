"""Training: the loop, checkpoints, EMA, the log and distribution."""
