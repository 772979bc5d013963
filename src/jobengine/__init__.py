"""jobengine: who may use how much of a shared job platform, who may run the past again, and the proof of it."""

__version__ = "0.1.0"
