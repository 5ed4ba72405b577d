"""`python -m mooncake_hicache` is the command `mooncake-hicache`."""

from mooncake_hicache.cli import main

if __name__ == "__main__":
    main()
