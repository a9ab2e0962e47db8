"""`python -m lite_align`, for `accelerate launch -m lite_align …`."""

from lite_align.cli import main

if __name__ == "__main__":
    main()
