"""What was done to make vectors, found from texts and vectors alone."""
