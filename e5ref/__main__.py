"""`python -m e5ref …`, for when the script `e5ref` is not on the path."""

from e5ref.cli import main

main()
