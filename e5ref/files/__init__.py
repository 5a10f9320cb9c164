"""Files: read line by line, written whole or not at all."""
