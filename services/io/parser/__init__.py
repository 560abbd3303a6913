"""Cuts files into nodes, in worker processes under limits."""
