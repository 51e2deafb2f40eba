"""What is computed for each job: a traced PyTensor graph or a NumPy function."""
