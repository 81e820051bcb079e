"""Other ways to run a model that is larger than the device's memory, measured beside tierpage: see run.py."""
