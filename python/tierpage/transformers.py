"""tierpage with Hugging Face transformers (4.57 or newer): weights that stay in their files, and figures of a Trainer.

    import tierpage.transformers

    with tierpage.transformers.file_backed():
        model = AutoModelForCausalLM.from_pretrained(folder)

Importing this module imports transformers; ``import tierpage`` does not.
"""

from __future__ import annotations

from tierpage._transformers.callback import PagerCallback
from tierpage._transformers.loading import file_backed

__all__ = ["PagerCallback", "file_backed"]
