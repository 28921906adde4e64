"""Image loading: decoding, augmentation on the device, datasets, samplers and loaders."""
