"""MapRectOp in PyTensor's compiled backends."""
