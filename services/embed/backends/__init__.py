"""What runs a model: OpenVINO, torch, or a hash; one protocol for all."""
