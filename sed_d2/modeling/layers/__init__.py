"""Layers that methods share, in their plain form."""
