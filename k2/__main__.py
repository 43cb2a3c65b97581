"""`python -m k2` is the command `k2`."""

from k2.cli import main

if __name__ == "__main__":
    main()
