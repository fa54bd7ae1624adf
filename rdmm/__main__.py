"""``python -m rdmm``."""

from rdmm.cli import main

if __name__ == "__main__":
    main()
