"""`python -m difformer VERB`, and `accelerate launch -m difformer VERB` on several processes."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main())
