"""The baselines; imported as `w2svd_bench.baselines`."""
