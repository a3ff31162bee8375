"""Model families. Each is one file that describes its stages and runs them; open `base.py` for what a family owes.

`load` opens a model of any family. Families are imported when asked for, because their libraries are large.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.models.base import Model

# The class a model names in its model_index.json or config.json, or its files are for -> the module of its family, with
# a `load` of its own.
FAMILIES = {
    "CosyVoice3": "inference.models.cosyvoice3",
    "I2VGenXLPipeline": "inference.models.i2vgen_xl",
    "PocketTTSForConditionalGeneration": "inference.models.pocket_tts",
    "StableVideoDiffusionPipeline": "inference.models.svd",
    "WanImageToVideoPipeline": "inference.models.wan_i2v",
}
# What weights become on an accelerator; those of families that are not here, half precision.
ON_ACCELERATOR = {
    "CosyVoice3": "float32",  # as its makers run it
    "PocketTTSForConditionalGeneration": "float32",  # so few that it costs nothing
    "WanImageToVideoPipeline": "bfloat16",  # as the model's makers run it
}
# Families whose code is no package: it is run from the user's checkout of their repository.
OF_CHECKOUTS = frozenset({"CosyVoice3"})


def load(source: str, *, name: str, device: str, dtype: str | None = None, checkout: str | None = None) -> Model:
    """A model of any known family, called `name`, ready to run on `device`.

    `source` is a local folder or a hub id, `OWNER/NAME` or `OWNER/NAME@REVISION`. `dtype` is a torch type such as
    "float16"; by default as `ON_ACCELERATOR` has it, and single precision on a CPU. Only safetensors weights are read,
    and of CosyVoice the tensors of its own files. `checkout` is for families whose code is no package: its folder.
    Raises ValueError for something that is no model, of no known family, or not loadable in this way.
    """
    from inference.models.sources import folder_of, pipeline_class

    folder = folder_of(source)
    family = pipeline_class(folder)
    if family not in FAMILIES:
        raise ValueError(f"{source} is a {family}; known families are {', '.join(sorted(FAMILIES))}")
    options = {"checkout": checkout} if family in OF_CHECKOUTS else {}
    if checkout and not options:
        raise ValueError(f"{source} is a {family}, which needs no checkout")
    model: Model = importlib.import_module(FAMILIES[family]).load(
        str(folder), name=name, device=device, dtype=dtype, **options
    )
    return model
