"""Jobs: a traced PyTensor graph or a NumPy function, computed for each."""
