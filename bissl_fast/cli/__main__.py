"""`python -m bissl_fast.cli`."""

from bissl_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
