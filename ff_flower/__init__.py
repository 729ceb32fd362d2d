"""FederatedFactory in plain PyTorch and NumPy: modules, registry, synthesis, classifiers, metrics."""
