"""CosyVoice 3: a second family of speech, by the user's own checkout of its repository.

`family.py` has the stages and is the place to begin; `checkout.py` enters the code, `folder.py` opens the model;
`reading.py` makes ids of texts, `speaking.py` tokens of speech of these, `sounding.py` samples of those.
"""

from inference.models.cosyvoice3.family import load

__all__ = ["load"]
