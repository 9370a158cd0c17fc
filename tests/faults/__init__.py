"""Faults under load, and the histories that show what was promised meanwhile (docs/scale-out.md)."""
