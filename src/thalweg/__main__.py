"""`python -m thalweg`, which torchrun starts too."""

from thalweg.cli import main

main()
