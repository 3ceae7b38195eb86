"""What the three scripts and the tools import. Layers: see README, "How the code is laid out"."""

from petface.errors import check_torch, watch_imports

watch_imports()
check_torch()
