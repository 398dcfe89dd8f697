"""Settlement: everything that runs under the lease of a partition."""
