"""Any tree of PyTorch modules as a reference: record it, and identify what a port of it did."""
