# SPDX-License-Identifier: Apache-2.0
"""`python -m spatext_lab`: the command line, for torchrun and `accelerate launch`."""

from spatext_lab.cli.parser import main

if __name__ == "__main__":
    raise SystemExit(main())
