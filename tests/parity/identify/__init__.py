"""What the judge says of the operation that a run really applied."""
