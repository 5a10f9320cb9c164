"""The way of texts through a twin: windows, batches, threads, devices."""
