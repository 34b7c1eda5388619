"""VBench: the real package in an environment of its own, and its aggregate scores."""
