"""The master: hosts the cluster's directory, and leads it where it is elected to."""
