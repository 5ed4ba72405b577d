"""The SSD log, read without the node: its format, and what a directory holds."""
