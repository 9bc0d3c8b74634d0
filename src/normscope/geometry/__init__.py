"""The geometry of a representation: its Gram matrix, the metrics of it, and the shapes it can have."""
