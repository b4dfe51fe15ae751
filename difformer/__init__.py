"""Pretrained diffusion models as vision backbones: features by name, fused across blocks and timesteps.

Its names stand in `__init__.pyi`; each is imported when it is first used, so that `import difformer` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
