"""Small programs to copy from; run one with ``python -m tierpage.examples.quickstart``."""
