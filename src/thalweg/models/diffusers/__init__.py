"""Real models: every flow pipeline of diffusers through one seam, its scheduler.

`model` holds the numbers and imports nothing heavy; the rest needs `pip install thalweg[diffusers]`.
"""
