"""`python -m tools.sass_model` from the clone's root, or `python tools/sass_model` from anywhere."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.sass_model.cli import main  # noqa: E402

sys.exit(main())
