"""Fimbria's services: one package each, and the chassis that all of them stand on."""
