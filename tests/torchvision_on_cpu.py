"""Imported first: torchvision has no build for torch's own of the CPU; its transforms work without its
operators.
"""

import sys
from types import ModuleType

sys.modules.setdefault("torchvision._meta_registrations", ModuleType("_meta_registrations"))
