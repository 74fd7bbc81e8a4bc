"""``python -m dialkey``: the command line."""

from dialkey.cli import main

if __name__ == "__main__":
    main()
