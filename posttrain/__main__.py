"""`python -m posttrain`."""

from posttrain.cli import main

raise SystemExit(main())
