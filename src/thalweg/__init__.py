"""Thalweg: align generative flow and diffusion models by online reinforcement learning."""

__version__ = "0.1.0"
