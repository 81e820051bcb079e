"""Private: ``tierpage.load`` (``loading``) and ``tierpage.save`` (``saving``) of safetensors files."""
