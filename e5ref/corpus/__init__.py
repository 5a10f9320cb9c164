"""A corpus: rows of files in, a folder of Parquet out, search over it."""
