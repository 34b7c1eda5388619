"""The methods under study; imported as `w2svd_bench.methods`."""
