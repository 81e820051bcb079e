"""What ``tierpage.transformers`` offers: loading of weights, and what a Trainer is told."""
