"""Pages and pictures of results; knows nothing of datasets, networks and metrics."""
