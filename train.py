"""python train.py experiment=NAME, or with data of your own. See docs/training.md."""

from train.main import main

if __name__ == "__main__":
    main()
