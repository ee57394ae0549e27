"""What lies on disk and in arrays: layouts, datasets, volumes, labels, splits, training slices, phantoms."""
