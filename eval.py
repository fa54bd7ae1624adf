"""python eval.py experiment=NAME: methods compared on a data set. See docs/rdmm.md."""

from eval.main import main

if __name__ == "__main__":
    main()
