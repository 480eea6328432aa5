"""From a PyTorch module to a bundle. The only part of the exporter that needs torch."""
