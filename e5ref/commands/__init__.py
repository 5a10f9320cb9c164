"""The commands of `e5ref`."""
