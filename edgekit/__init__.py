"""edgekit: carry ML models from a registry onto a fleet of devices and keep them healthy there."""

__version__ = "0.1.0"
