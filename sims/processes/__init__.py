"""Flower as processes of this machine: private SuperLinks for simulations and deployments, their certificates and their logs."""
