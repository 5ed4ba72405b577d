"""Benchmarks: `python -m bench NAME --json FILE --plot FILE`, and the demo."""
