"""The node as a process: where it lives, how it is found or started, its daemon and its HTTP
side."""
